#!/usr/bin/env python3
"""Make the small reference checkpoints of tests/data: random weights, and what transformers computes from them.

Runs in an environment of its own, with torch and transformers, which the engine never imports:

    python -m venv golden && golden/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors
    golden/bin/python tools/golden.py --out tests/data [--family llama,mixtral]

Per family it writes config.json, generation_config.json, model.safetensors (bfloat16), tokenizer.json,
tokenizer_config.json and golden.npz with
    input_ids [83] int64; logits and logits_bf16 [83, V] float32 (computed in float32 and in bfloat16, same weights);
    greedy [16] int64 (float32 continuation); margins [16] float32 (best logit minus the second, at each step);
    of hybrids hidden [L + 1, 83, H] float32 (embeddings, then the sum after each layer, the last after the final norm);
    of models with a head for the token after the next mtp_logits [82, V] and mtp_hidden [82, H] float32: position i
    sees token i + 1 and the final hidden state of token i.
Seeds are tried in order until the greedy tokens differ enough, have margins above 0.05, and survive bfloat16; and until
routers decide clearly, so that roundings move values and not whole experts.
"""
from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

VOCAB, PROMPT, NEW = 320, 83, 16
BYTES = 256
SPECIALS = ("<|begin|>", "<|end|>", "<|pad|>", "<|turn|>", "<|think|>", "<|/think|>")
MERGES = ("\u0120 t", "\u0120 a", "h e", "i n", "\u0120t he", "r e", "o n", "\u0120 s", "e r", "n d")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}")
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": BYTES, "eos_token_id": BYTES + 1, "pad_token_id": BYTES + 2}


def llama() -> Any:
    """Llama3 rope scaling, and an output matrix of its own."""
    return transformers.LlamaConfig(
        **COMMON, hidden_size=64, intermediate_size=160, num_hidden_layers=3, head_dim=16, tie_word_embeddings=False,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32})


def mistral() -> Any:
    """A window of 8 tokens, and heads wider than hidden_size / heads."""
    return transformers.MistralConfig(
        **COMMON, hidden_size=64, intermediate_size=128, num_hidden_layers=3, head_dim=32, tie_word_embeddings=False,
        sliding_window=8, rope_parameters={"rope_type": "default", "rope_theta": 100000.0})


def qwen3() -> Any:
    """Tied embeddings, and RMS norms of queries and keys."""
    return transformers.Qwen3Config(
        **COMMON, hidden_size=96, intermediate_size=160, num_hidden_layers=2, head_dim=32, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})


def mixtral() -> Any:
    """Five experts, of which a token takes two."""
    return transformers.MixtralConfig(
        **COMMON, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16, tie_word_embeddings=False,
        num_local_experts=5, num_experts_per_tok=2, sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})


def qwen3_moe() -> Any:
    """Seven experts, of which a token takes three; a dense layer between; weights of the three that do not add up."""
    return transformers.Qwen3MoeConfig(
        **COMMON, hidden_size=64, intermediate_size=96, moe_intermediate_size=40, num_hidden_layers=3, head_dim=32,
        tie_word_embeddings=True, num_experts=7, num_experts_per_tok=3, norm_topk_prob=False, mlp_only_layers=[1],
        decoder_sparse_step=1, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})


def qwen3_moe_pruned() -> Any:
    """Experts pruned to a different number in each layer (see `COUNTS`), the last with fewer than a token takes."""
    return transformers.Qwen3MoeConfig(
        **COMMON, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=4, head_dim=16,
        tie_word_embeddings=False, num_experts=8, num_experts_per_tok=4, norm_topk_prob=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})


HYBRID: dict[str, Any] = {
    "hidden_size": 64, "head_dim": 32, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 32,
    "linear_value_head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "mtp_num_hidden_layers": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25,
                        "mrope_interleaved": True, "mrope_section": [2, 1, 1]}}


def qwen3_5() -> Any:
    """Gated DeltaNet in all layers but the second, which has gated attention; tied embeddings."""
    return transformers.Qwen3_5TextConfig(
        **COMMON, **HYBRID, intermediate_size=96, num_hidden_layers=4, tie_word_embeddings=True,
        layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"])


def qwen3_5_moe() -> Any:
    """Seven experts, of which a token takes three, and one that all share; attention in every second layer."""
    return transformers.Qwen3_5MoeTextConfig(
        **COMMON, **HYBRID, moe_intermediate_size=32, shared_expert_intermediate_size=32, num_hidden_layers=3,
        num_experts=7, num_experts_per_tok=3, tie_word_embeddings=False,
        layer_types=["linear_attention", "full_attention", "linear_attention"])


FAMILIES: dict[str, tuple[Callable[[], Any], Any]] = {
    "llama": (llama, transformers.LlamaForCausalLM),
    "mistral": (mistral, transformers.MistralForCausalLM),
    "qwen3": (qwen3, transformers.Qwen3ForCausalLM),
    "mixtral": (mixtral, transformers.MixtralForCausalLM),
    "qwen3_moe": (qwen3_moe, transformers.Qwen3MoeForCausalLM),
    "qwen3_moe_pruned": (qwen3_moe_pruned, transformers.Qwen3MoeForCausalLM),
    "qwen3_5": (qwen3_5, transformers.Qwen3_5ForCausalLM),
    "qwen3_5_moe": (qwen3_5_moe, transformers.Qwen3_5MoeForCausalLM)}
COUNTS = {"qwen3_moe_pruned": (7, 5, 8, 3)}
"""Experts that are kept in each layer"""
HYBRIDS = ("qwen3_5", "qwen3_5_moe")
NESTED = ("qwen3_5_moe",)
"""Written as releases that also see: the text model's fields in text_config, `full_attention_interval` instead of a
list of layers, tensors below model.language_model"""
RELEASED = ("llama", "mistral", "mixtral")
"""Written with the config fields of released models (rope_theta, rope_scaling, torch_dtype), not of transformers 5"""


def fill(model: Any, seed: int) -> None:
    """Normal weights whose gain keeps attention and logits decisive; norms spread around 1; all exact in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    tied = hasattr(model, "config") and model.config.tie_word_embeddings
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
        if owner in ("Qwen3_5RMSNorm", "Qwen3_5MoeRMSNorm"):  # the stored weight is the distance from 1
            values = 0.25 * noise
        elif name.endswith("A_log"):
            values = (0.3 + 2.7 * torch.rand(p.shape, generator=generator)).log()
        elif name.endswith("dt_bias"):
            values = 2.5 * torch.rand(p.shape, generator=generator) - 1.5
        elif "conv1d" in name:
            values = 0.4 * noise
        elif "norm" in name:
            values = 1.0 + 0.25 * noise
        elif "embed_tokens" in name:
            values = 0.15 * noise if tied else noise
        else:
            values = noise * 1.5 / p.shape[-1] ** 0.5
        p.data.copy_(values.to(torch.bfloat16).to(p.dtype))


def prune(model: Any, counts: tuple[int, ...]) -> None:
    """Keep the first experts of each layer; a layer that has fewer than a token takes gives it all of them."""
    for layer, count in zip(model.model.layers, counts, strict=True):
        router, experts = layer.mlp.gate, layer.mlp.experts
        router.num_experts = experts.num_experts = count
        router.top_k = min(router.top_k, count)
        for module, name in ((router, "weight"), (experts, "gate_up_proj"), (experts, "down_proj")):
            setattr(module, name, torch.nn.Parameter(getattr(module, name).data[:count].clone()))


class Draft(torch.nn.Module):
    """The head of Qwen3.5 that guesses the token after the next: one layer of full attention over the next token's
    embedding and the final hidden state, each normed, side by side in this order."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        base = model.get_decoder()
        config = copy.deepcopy(model.config)
        config.layer_types = ["full_attention"]
        norm, width = type(base.norm), config.hidden_size
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden, self.norm = (
            norm(width, eps=config.rms_norm_eps) for _ in range(3))
        self.fc = torch.nn.Linear(2 * width, width, bias=False)
        self.layers = torch.nn.ModuleList([type(base.layers[0])(config, 0)])

    @torch.no_grad()
    def forward(self, model: Any, ids: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits, normed hidden states) for the tokens that follow each position, [1, T], and its state [1, T, H]."""
        base, config = model.get_decoder(), self.layers[0].self_attn.config
        x = torch.cat((self.pre_fc_norm_embedding(base.embed_tokens(ids)), self.pre_fc_norm_hidden(hidden)), dim=-1)
        x, places = self.fc(x), torch.arange(ids.shape[1])[None]
        mask = transformers.masking_utils.create_causal_mask(
            config=config, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=places)
        x = self.layers[0](x, position_embeddings=base.rotary_emb(x, places[None].expand(3, 1, -1)),
                           attention_mask=mask, position_ids=places, past_key_values=None)
        y = self.norm(x[0] if isinstance(x, tuple) else x)
        return model.lm_head(y), y


@torch.no_grad()
def hybrid(model: Any, draft: Any, ids: torch.Tensor) -> dict[str, np.ndarray]:
    """What golden.npz holds of hybrids beside the rest."""
    hidden = model(ids, use_cache=False, output_hidden_states=True).hidden_states
    logits, states = draft(model, ids[:, 1:], hidden[-1][:, :-1])
    return {"hidden": torch.stack([h[0] for h in hidden]).float().numpy(), "mtp_logits": logits[0].float().numpy(),
            "mtp_hidden": states[0].float().numpy()}


def prompt(seed: int) -> torch.Tensor:
    """The beginning token and random bytes, [1, PROMPT]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat((torch.tensor([BYTES]), torch.randint(0, BYTES, (PROMPT - 1,), generator=generator)))[None]


@torch.no_grad()
def routing_gap(model: Any, ids: torch.Tensor) -> float:
    """By how much the last chosen router logit beats the first one left out, at least; infinite without a choice."""
    gaps = [torch.tensor([torch.inf])]

    def watch(router: Any, _: Any, output: Any) -> None:
        best = output[0].float().topk(min(router.top_k + 1, router.num_experts), dim=-1).values
        if best.shape[-1] > router.top_k:
            gaps.append(best[:, -2] - best[:, -1])

    hooks = [m.register_forward_hook(watch) for m in model.modules() if type(m).__name__.endswith("TopKRouter")]
    model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return float(torch.cat(gaps).min())


@torch.no_grad()
def goldens(model: Any, twin: Any, ids: torch.Tensor) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays of golden.npz, and whether they make a good test. `twin` is the same model in bfloat16."""
    sequence, steps = ids, []
    for _ in range(NEW):
        last = model(sequence, use_cache=False).logits[0, -1].float()
        steps.append(last)
        sequence = torch.cat((sequence, last.argmax().reshape(1, 1)), dim=1)
    best = torch.stack(steps).topk(2, dim=-1).values
    greedy, margins = sequence[0, PROMPT:], best[:, 0] - best[:, 1]
    rounded = twin(sequence, use_cache=False).logits[0].float()
    good = bool(torch.equal(rounded[PROMPT - 1 : -1].argmax(-1), greedy) and margins.min() > 0.05
                and len(set(greedy.tolist())) >= 8 and routing_gap(model, sequence) > 0.01)
    return {
        "input_ids": ids[0].numpy(), "logits": model(ids, use_cache=False).logits[0].float().numpy(),
        "logits_bf16": rounded[:PROMPT].numpy(), "greedy": greedy.numpy(), "margins": margins.numpy()}, good


def tokenizer() -> Tokenizer:
    """Byte-level BPE: 256 bytes, then the special tokens, a few merges at the end, unused ids between."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    vocab = {letters[b]: b for b in range(BYTES)}
    merges = [(a, b) for a, b in (m.split(" ") for m in MERGES)]
    vocab |= {a + b: VOCAB - len(merges) + i for i, (a, b) in enumerate(merges)}
    names = list(SPECIALS) + [f"<|unused_{i}|>" for i in range(BYTES + len(SPECIALS), VOCAB - len(merges))]
    vocab |= {name: BYTES + i for i, name in enumerate(names)}
    tk = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tk.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tk.decoder = decoders.ByteLevel()
    tk.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tk


def nest(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a model that also sees, around that of its text part."""
    text = config | {"full_attention_interval": config["layer_types"].index("full_attention") + 1}
    outer = {"architectures": [text.pop("architectures")[0].replace("CausalLM", "ConditionalGeneration")],
             "model_type": config["model_type"].removesuffix("_text"), "vision_config": {"depth": 0},
             "tie_word_embeddings": text["tie_word_embeddings"], "transformers_version": text["transformers_version"]}
    del text["layer_types"], text["transformers_version"]
    return outer | {"text_config": text}


def write(name: str, folder: Path, model: Any, draft: Any, arrays: dict[str, np.ndarray]) -> None:
    """Save one checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    if draft is not None:
        weights |= {f"mtp.{key}": value for key, value in draft.to(torch.bfloat16).state_dict().items()}
    if name in NESTED:
        weights = {key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key: value
                   for key, value in weights.items()}
        file = folder / "config.json"
        file.write_text(json.dumps(nest(json.loads(file.read_text())), indent=2, sort_keys=True) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    if name in RELEASED:
        config = json.loads((folder / "config.json").read_text())
        rope = config.pop("rope_parameters")
        config |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": config.pop("dtype"),
                   "rope_scaling": rope if rope["rope_type"] != "default" else None}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if name in COUNTS:
        config = json.loads((folder / "config.json").read_text()) | {"num_experts_per_layer": COUNTS[name]}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIALS[0], "eos_token": SPECIALS[1],
        "pad_token": SPECIALS[2], "chat_template": TEMPLATE, "model_max_length": COMMON["max_position_embeddings"],
        "clean_up_tokenization_spaces": False}, indent=2) + "\n")
    np.savez_compressed(folder / "golden.npz", **arrays)


def make(name: str, out: Path, tries: int) -> str:
    """Make one family's folder; a line that describes it."""
    config, kind = FAMILIES[name]
    for seed in range(tries):
        torch.manual_seed(seed)
        settings = config()
        settings._attn_implementation = settings._experts_implementation = "eager"
        model, twin = kind(settings).float().eval(), kind(settings).float().eval()
        fill(model, seed)
        if name in COUNTS:
            prune(model, COUNTS[name])
            prune(twin, COUNTS[name])
        twin.load_state_dict(model.state_dict())
        twin.to(torch.bfloat16)
        for buffer, value in twin.named_buffers():
            value.data = model.get_buffer(buffer).data.clone()  # rope frequencies stay float32, as when loading in bf16
        arrays, good = goldens(model, twin, prompt(seed + 1000))
        draft = None
        if good and name in HYBRIDS:
            draft = Draft(model).float().eval()
            fill(draft, seed + 7)
            arrays |= hybrid(model, draft, prompt(seed + 1000))
        if good:
            write(name, out / name, model, draft, arrays)
            size = sum(f.stat().st_size for f in (out / name).iterdir())
            return f"{name}: seed {seed}, {size} bytes, smallest margin {arrays['margins'].min():.3f}"
    raise SystemExit(f"{name}: none of {tries} seeds gives decisive greedy tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the reference checkpoints of tests/data.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--family", default=",".join(FAMILIES))
    parser.add_argument("--tries", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for name in options.family.split(","):
        print(make(name, options.out, options.tries), flush=True)


if __name__ == "__main__":
    main()
