"""Write checkpoints of random weights at the shapes of real models: fair subjects for speed, never for quality.

    python tools/synthetic.py qwen3-8b q4_k_m qwen3-8b.gguf
    python tools/synthetic.py qwen3-30b-a3b hf-nvfp4 qwen3-30b-a3b-nvfp4/

Formats of a GGUF file: q4_k_m, q8_0, q4_0, q5_k, q6_k, bf16; of a Hugging Face folder, with the tensor names of
published releases: hf-bf16, hf-nvfp4 (ModelOpt), hf-fp8 (ModelOpt, a scale per tensor), hf-fp8-block (a scale per
128 x 128). `q4_k_m` is the usual mix: Q6_K for the head, and for the value and down projections of half the layers.
Of hybrids (qwen3.6-*), hf-nvfp4 is the published mix: attention and recurrent layers FP8, MLPs and head NVFP4; both
containers have the head for multi-token prediction.
Embeddings, head, routers and norms of folders are BF16; routers and norms of GGUF files are F32.

Weights have a standard deviation near 0.02, so that activations stay finite. The vocabulary is of invented words
(synthetic_words.py). A few megabytes are drawn and repeated, each tensor from another place on.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from synthetic_entries import Entry, Pools, linear
from synthetic_hybrid import ROTATED, Delta, add_delta, gguf_layer, hf_hybrid, hybrid_config
from synthetic_words import END, MERGE, vocabulary


class Shape(msgspec.Struct, frozen=True):
    """Sizes of a model. `experts` of `mlp` wide MLPs, `top` of which see a token; 0 experts: it is dense."""

    family: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    theta: float
    context: int
    tied: bool = False
    experts: int = 0
    top: int = 0
    dense_mlp: int = 0
    """what configurations of sparse models call the width of a dense MLP, which no layer has"""
    delta: Delta | None = None
    """of hybrids: their recurrent layers"""


class Kind(msgspec.Struct, frozen=True):
    """What a family is called, and how it names its experts: the module, and gate, up and down in it."""

    gguf: str
    architecture: str
    model_type: str
    head_norms: bool
    eps: float
    module: str = "mlp"
    expert: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    scaling: dict[str, Any] | None = None


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
KINDS = {
    "qwen3": Kind("qwen3", "Qwen3ForCausalLM", "qwen3", True, 1e-6),
    "qwen3moe": Kind("qwen3moe", "Qwen3MoeForCausalLM", "qwen3_moe", True, 1e-6),
    "llama3": Kind("llama", "LlamaForCausalLM", "llama", False, 1e-5, scaling=LLAMA3),
    "qwen35": Kind("qwen35", "Qwen3_5ForConditionalGeneration", "qwen3_5", True, 1e-6),
    "qwen35moe": Kind("qwen35moe", "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", True, 1e-6),
    "mixtral": Kind("llama", "MixtralForCausalLM", "mixtral", False, 1e-5, "block_sparse_moe", ("w1", "w3", "w2")),
}
SHAPES = {
    "qwen3-8b": Shape("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, 1e6, 40960),
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 1e6, 40960, tied=True),
    "llama-3.1-8b": Shape("llama3", 32, 4096, 14336, 32, 8, 128, 128256, 5e5, 131072),
    "qwen3-30b-a3b": Shape("qwen3moe", 48, 2048, 768, 32, 4, 128, 151936, 1e6, 40960, experts=128, top=8,
                           dense_mlp=6144),
    "mixtral-8x7b": Shape("mixtral", 32, 4096, 14336, 32, 8, 128, 32000, 1e6, 32768, experts=8, top=2),
    "qwen3.6-27b": Shape("qwen35", 64, 5120, 17408, 24, 4, 256, 248320, 1e7, 262144, delta=Delta(16, 48)),
    "qwen3.6-35b-a3b": Shape("qwen35moe", 40, 2048, 512, 16, 2, 256, 248320, 1e7, 262144, experts=256, top=8,
                             delta=Delta(16, 32)),
}
MIXES = {"q4_k_m": ("Q4_K", "Q6_K", "Q6_K", 15), "q8_0": ("Q8_0", "Q8_0", "Q8_0", 7), "q4_0": ("Q4_0",) * 3 + (2,),
         "q5_k": ("Q5_K",) * 3 + (17,), "q6_k": ("Q6_K",) * 3 + (18,), "bf16": ("BF16",) * 3 + (32,)}
"""base type, type of the sensitive projections, type of the head, and the file type number"""
LAYOUTS = ("hf-bf16", "hf-nvfp4", "hf-fp8", "hf-fp8-block")
SHARD = 5_000_000_000
"""Most bytes of one safetensors file"""
BYTES = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
def sensitive(layer: int, layers: int) -> bool:
    """Whether the usual mix keeps more bits in a layer: the first and last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def gguf_entries(s: Shape, mix: tuple[str, str, str, int]) -> Iterator[Entry]:
    """Every tensor of a GGUF file; shapes as NumPy has them."""
    base, high, head, _ = mix
    kind = KINDS[s.family]

    def matrix(name: str, form: str, *shape: int) -> Entry:
        return Entry(f"{name}.weight", form, shape, form)

    def ones(name: str, size: int) -> Entry:
        return Entry(f"{name}.weight", "F32", (size,), "=1")

    yield matrix("token_embd", head if s.tied else base, s.vocab, s.hidden)
    yield ones("output_norm", s.hidden)
    if not s.tied:
        yield matrix("output", head, s.vocab, s.hidden)
    if kind.scaling is not None:
        yield Entry("rope_freqs.weight", "F32", (s.head_dim // 2,), "rope")
    if s.delta is not None:
        for i in range(s.layers + 1):  # the last is the head for multi-token prediction
            yield from gguf_layer(s, s.delta, i, base, high if sensitive(i, s.layers) else base)
        return
    for i in range(s.layers):
        b, more = f"blk.{i}.", high if sensitive(i, s.layers) else base
        yield ones(b + "attn_norm", s.hidden)
        yield ones(b + "ffn_norm", s.hidden)
        if kind.head_norms:
            yield ones(b + "attn_q_norm", s.head_dim)
            yield ones(b + "attn_k_norm", s.head_dim)
        yield matrix(b + "attn_q", base, s.heads * s.head_dim, s.hidden)
        yield matrix(b + "attn_k", base, s.kv_heads * s.head_dim, s.hidden)
        yield matrix(b + "attn_v", more, s.kv_heads * s.head_dim, s.hidden)
        yield matrix(b + "attn_output", base, s.hidden, s.heads * s.head_dim)
        stack, last = ((s.experts,), "_exps") if s.experts else ((), "")
        if s.experts:
            yield matrix(b + "ffn_gate_inp", "F32", s.experts, s.hidden)
        yield matrix(b + "ffn_gate" + last, base, *stack, s.mlp, s.hidden)
        yield matrix(b + "ffn_up" + last, base, *stack, s.mlp, s.hidden)
        yield matrix(b + "ffn_down" + last, more, *stack, s.hidden, s.mlp)


def write_gguf(s: Shape, mix: tuple[str, str, str, int], path: Path, seed: int) -> int:
    """Write the file; returns the bytes of its tensors."""
    from gguf import GGMLQuantizationType, GGUFWriter

    kind = KINDS[s.family]
    writer = GGUFWriter(path, kind.gguf)
    writer.add_file_type(mix[3])
    writer.add_block_count(s.layers + (s.delta is not None))
    writer.add_context_length(s.context)
    writer.add_embedding_length(s.hidden)
    writer.add_feed_forward_length(s.dense_mlp or s.mlp)
    if s.delta is not None:
        add_delta(writer, s.delta, s.layers, s.mlp if s.experts else 0)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_key_length(s.head_dim)
    writer.add_value_length(s.head_dim)
    writer.add_layer_norm_rms_eps(kind.eps)
    writer.add_rope_freq_base(s.theta)
    writer.add_rope_dimension_count(s.head_dim if s.delta is None else s.head_dim // ROTATED)
    writer.add_vocab_size(s.vocab)
    if s.experts:
        writer.add_expert_count(s.experts)
        writer.add_expert_used_count(s.top)
        writer.add_expert_feed_forward_length(s.mlp)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if s.delta is None else "qwen35")
    writer.add_token_list(vocabulary(s.vocab))
    writer.add_token_types([1] * s.vocab)
    writer.add_token_merges([" ".join(MERGE)])
    writer.add_eos_token_id(s.vocab - 1)
    entries = list(gguf_entries(s, mix))
    for entry in entries:
        # The size of the dtype is not looked at beside a raw type, only that it is none of bytes.
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.nbytes(),
                               GGMLQuantizationType[entry.dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    out, pools = writer.fout[0], Pools(seed)
    writer.write_padding(out, out.tell())
    for entry in entries:
        if entry.fill == "rope":
            out.write(rope_factors(s, kind).tobytes())
        else:
            pools.write(out, entry.fill, entry.nbytes())
        writer.write_padding(out, entry.nbytes())
    writer.close()
    return sum(entry.nbytes() for entry in entries)


def rope_factors(s: Shape, kind: Kind) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What GGUF files divide the frequencies by [head_dim / 2]: the bands of Llama 3.1."""
    assert kind.scaling is not None
    c = kind.scaling
    turns = c["original_max_position_embeddings"] / (2 * np.pi * s.theta ** (np.arange(0, s.head_dim, 2) / s.head_dim))
    smooth = np.clip((turns - c["low_freq_factor"]) / (c["high_freq_factor"] - c["low_freq_factor"]), 0, 1)
    return (1 / (smooth + (1 - smooth) / c["factor"])).astype(np.float32)


def hf_entries(s: Shape, layout: str) -> Iterator[Entry]:
    """Every tensor of a folder."""
    kind = KINDS[s.family]
    if s.delta is not None:
        yield from hf_hybrid(s, s.delta, layout)
        return

    def ones(name: str, size: int) -> Entry:
        return Entry(f"{name}.weight", "BF16", (size,), "one BF16")

    yield Entry("model.embed_tokens.weight", "BF16", (s.vocab, s.hidden), "BF16")
    for i in range(s.layers):
        b = f"model.layers.{i}."
        yield ones(b + "input_layernorm", s.hidden)
        yield ones(b + "post_attention_layernorm", s.hidden)
        if kind.head_norms:
            yield ones(b + "self_attn.q_norm", s.head_dim)
            yield ones(b + "self_attn.k_norm", s.head_dim)
        yield from linear(layout, b + "self_attn.q_proj", s.heads * s.head_dim, s.hidden)
        yield from linear(layout, b + "self_attn.k_proj", s.kv_heads * s.head_dim, s.hidden)
        yield from linear(layout, b + "self_attn.v_proj", s.kv_heads * s.head_dim, s.hidden)
        yield from linear(layout, b + "self_attn.o_proj", s.hidden, s.heads * s.head_dim)
        mlp = b + kind.module + "."
        if s.experts:
            yield Entry(mlp + "gate.weight", "BF16", (s.experts, s.hidden), "BF16")
        for module in ([f"{mlp}experts.{e}." for e in range(s.experts)] or [mlp]):
            gate, up, down = kind.expert
            yield from linear(layout, module + gate, s.mlp, s.hidden)
            yield from linear(layout, module + up, s.mlp, s.hidden)
            yield from linear(layout, module + down, s.hidden, s.mlp)
    yield ones("model.norm", s.hidden)
    if not s.tied:
        yield Entry("lm_head.weight", "BF16", (s.vocab, s.hidden), "BF16")


def config_of(s: Shape, layout: str) -> dict[str, Any]:
    """config.json."""
    kind = KINDS[s.family]
    if s.delta is not None:
        return hybrid_config(s, s.delta, layout, kind.architecture, kind.model_type, kind.eps)
    config: dict[str, Any] = {
        "architectures": [kind.architecture], "model_type": kind.model_type, "torch_dtype": "bfloat16",
        "hidden_size": s.hidden, "intermediate_size": s.dense_mlp or s.mlp, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim,
        "vocab_size": s.vocab, "rms_norm_eps": kind.eps, "rope_theta": s.theta, "rope_scaling": kind.scaling,
        "max_position_embeddings": s.context, "hidden_act": "silu", "attention_bias": False,
        "tie_word_embeddings": s.tied, "eos_token_id": s.vocab - 1}
    if s.family == "qwen3moe":
        config |= {"num_experts": s.experts, "num_experts_per_tok": s.top, "moe_intermediate_size": s.mlp,
                   "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    elif s.experts:
        config |= {"num_local_experts": s.experts, "num_experts_per_tok": s.top}
    kept = ["lm_head"] + [f"model.layers.{i}.{kind.module}.gate" for i in range(s.layers) if s.experts]
    settings: dict[str, dict[str, Any]] = {
        "hf-nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": kept},
        "hf-fp8": {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": kept},
        "hf-fp8-block": {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                         "weight_block_size": [128, 128], "modules_to_not_convert": kept}}
    return config | ({"quantization_config": settings[layout]} if layout in settings else {})


def shards(entries: Sequence[Entry], most: int) -> list[list[Entry]]:
    """Tensors in files of up to `most` bytes."""
    files: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if files[-1] and size + entry.nbytes() > most:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.nbytes()
    return files


def write_folder(s: Shape, layout: str, folder: Path, seed: int, most: int = SHARD) -> int:
    """Write the folder; returns the bytes of its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = list(hf_entries(s, layout))
    files, pools, where = shards(entries, most), Pools(seed), {}
    for i, shard in enumerate(files):
        name = "model.safetensors" if len(files) == 1 else f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        where |= {entry.name: name for entry in shard}
        write_safetensors(folder / name, shard, pools)
    total = sum(entry.nbytes() for entry in entries)
    if len(files) > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    config = config_of(s, layout)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": s.vocab - 1})
    settings = config.get("quantization_config", {})
    if settings.get("quant_method") == "modelopt":
        inner = {"quant_algo": settings["quant_algo"], "kv_cache_quant_algo": None,
                 "exclude_modules": settings["ignore"]} | {k: settings[k] for k in ("group_size",) if k in settings}
        write_json(folder / "hf_quant_config.json", {"producer": {"name": "modelopt"}, "quantization": inner})
    tokens = {token: i for i, token in enumerate(vocabulary(s.vocab))}
    write_json(folder / "tokenizer.json", {
        "version": "1.0", "pre_tokenizer": {"type": "ByteLevel", **BYTES}, "decoder": {"type": "ByteLevel", **BYTES},
        "added_tokens": [{"id": s.vocab - 1, "content": END, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "model": {"type": "BPE", "vocab": tokens, "merges": [" ".join(MERGE)]}})
    write_json(folder / "tokenizer_config.json", {"eos_token": END})
    return total


def write_safetensors(path: Path, entries: Sequence[Entry], pools: Pools) -> None:
    """One file: the length of the header, the header, the tensors in order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [at, at + entry.nbytes()]}
        at += entry.nbytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            pools.write(out, entry.fill, entry.nbytes())


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="write random weights at the shapes of a real model")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("format", choices=(*sorted(MIXES), *LAYOUTS))
    parser.add_argument("out", type=Path, help="a GGUF file, or a folder for hf-*")
    parser.add_argument("--seed", type=int, default=0)
    found = parser.parse_args(argv)
    shape = SHAPES[found.shape]
    if found.format in MIXES:
        total = write_gguf(shape, MIXES[found.format], found.out, found.seed)
    else:
        total = write_folder(shape, found.format, found.out, found.seed)
    print(f"{found.out}: {total / 1e9:.3f} GB of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
