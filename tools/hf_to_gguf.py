#!/usr/bin/env python3
"""Write a GGUF (version 3) of a Hugging Face folder: Llama, Mistral, Mixtral, Qwen3 and 3.5 with and without experts.

    python tools/hf_to_gguf.py model/ model.gguf                      # types as in the folder
    python tools/hf_to_gguf.py model/ model.gguf --type q4_k
    python tools/hf_to_gguf.py model/ model.gguf --split 3            # model-00001-of-00003.gguf and so on

Rows of q and k are permuted for arch `llama`, llama3 rope scaling becomes rope_freqs.weight, one-dimensional tensors
and routers are stored as f32, the experts of a layer as one tensor. Matrices whose columns do not fit the blocks of the
chosen type keep the type they have. Of Qwen3.5 the text part is written: norm weights with their 1 added, -exp(A_log),
and value heads in the order in which key heads take turns (blackwell_infer/checkpoint/names.py).
"""
from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import msgspec
import numpy as np

from blackwell_infer.checkpoint import Checkpoint, open_checkpoint
from blackwell_infer.checkpoint.names import BARE, GLOBAL, HYBRID, HYBRIDS, LAYER, NEXTN, PERMUTED, ROPE_FREQS, STACKED
from blackwell_infer.checkpoint.reader import TensorInfo
from blackwell_infer.errors import BlackwellInferError, CheckpointError, UnsupportedModelError
from blackwell_infer.models.layers import read_config
from blackwell_infer.models.moe import MoeConfig
from blackwell_infer.models.qwen3_5 import recurrent_layers, text_part
from blackwell_infer.models.registry import find_family
from blackwell_infer.quant import FORMATS, Weight, mxfp4, nvfp4
from blackwell_infer.quant.encode import ENCODERS, encode
from blackwell_infer.quant.encode_fp import encode_fp

if TYPE_CHECKING:
    from gguf import GGUFWriter

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3",
                 "MixtralForCausalLM": "llama", "Qwen3MoeForCausalLM": "qwen3moe",
                 **{name.replace("CausalLM", kind): arch for arch, (name, _) in HYBRIDS.items()
                    for kind in ("CausalLM", "ConditionalGeneration")}}
EXPERT = re.compile(r"((?:model|model\.language_model|mtp)\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts)"
                    r"\.(\d+)\.(\w+)\.weight")
PROJECTIONS = {"gate_proj": "ffn_gate_exps", "w1": "ffn_gate_exps", "up_proj": "ffn_up_exps", "w3": "ffn_up_exps",
               "down_proj": "ffn_down_exps", "w2": "ffn_down_exps"}
ROUTER = "ffn_gate_inp"
CHANGES = {"A_log": "decay", "dt_bias": "rows", "conv1d.weight": "rows", "in_proj_qkv.weight": "rows",
           "in_proj_z.weight": "rows", "in_proj_b.weight": "rows", "in_proj_a.weight": "rows",
           "out_proj.weight": "columns"}
"""See `Plan.change`, of tensors of recurrent layers"""
FLOATS = {"nvfp4": nvfp4.gguf_blocks, "mxfp4": mxfp4.gguf_blocks}
TYPES = ("f32", "f16", "bf16", *ENCODERS, *FLOATS)
DENSE = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class Plan(msgspec.Struct, frozen=True):
    """One tensor to write: GGUF name, Hugging Face name, type, shape, heads whose rows are permuted (0: none).

    `count` > 0: the source has "{}" for the number of each of so many experts, which are stacked.
    `part` "factor" or "inputs": not the matrix itself but that scale of it as nvfp4, float32 [1], of experts [count].
    """

    name: str
    source: str
    kind: str
    shape: tuple[int, ...]
    heads: int
    part: str = ""
    count: int = 0
    change: str = ""
    """"plus one" or "decay": how values change; "rows" or "columns": which of them are value heads to be reordered"""

    @property
    def nbytes(self) -> int:
        form = FORMATS[self.kind]
        return int(np.prod(self.shape, dtype=np.int64)) // form.block * form.block_bytes


def setting(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise CheckpointError(f"config.json has no {key!r}")
    return config[key]


def permuted(rows: int, heads: int) -> np.ndarray[Any, Any]:
    """Hugging Face row of every GGUF row: per head [2, d/2] -> [d/2, 2]."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def rope_of(config: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """(theta, scaling) from either spelling; scaling is {} for plain rope."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(config.get("rope_theta") or scaling.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    return theta, {} if kind == "default" else scaling | {"rope_type": kind}


def rope_divisors(theta: float, dim: int, scaling: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """llama3 scaling as the divisor of every frequency, float32 [dim / 2] (models.md, section 1)."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    frequency = theta ** (-np.arange(0, dim, 2) / dim)
    turns = original * frequency / (2 * np.pi)
    s = (turns - low) / (high - low)
    middle = 1 / ((1 - s) / factor + s)
    return np.where(turns > high, 1.0, np.where(turns < low, factor, middle)).astype(np.float32)


def fits(kind: str, cols: int) -> bool:
    """Whether rows of `cols` are whole blocks of this type in GGUF."""
    return kind in FORMATS and cols % (nvfp4.GGUF_BLOCK if kind == "nvfp4" else FORMATS[kind].block) == 0


def plan(checkpoint: Checkpoint, arch: str, kind: str | None) -> Iterator[Plan]:
    """Every tensor of the folder under its GGUF name; an unexpected one is an error."""
    config = config_of(checkpoint)
    tops = {v: k for k, v in GLOBAL.items()}
    layers = {v: k for k, v in (LAYER | HYBRID if arch in HYBRIDS else LAYER).items()}
    last = setting(config, "num_hidden_layers")
    heads = {"attn_q": setting(config, "num_attention_heads"), "attn_k": setting(config, "num_key_value_heads")}
    stacks = {f"mlp.experts.{v.rpartition('.')[2]}": k for k, v in STACKED.items()}
    for name, info in checkpoint.tensors.items():
        if name.startswith("model.visual."):
            continue
        local = in_blocks(name, last)
        stem, _, suffix = local.rpartition(".")
        part = ""
        expert = EXPERT.fullmatch(name)
        plain = local.replace(".block_sparse_moe.", ".mlp.").split(".", 3)[-1]
        if expert is not None and expert[4] in PROJECTIONS:
            if int(expert[3]) == 0:
                yield from stack(checkpoint, expert, local.split(".")[2], kind)
            continue
        if arch in HYBRIDS and special(plain):
            yield hybrid_plan(name, local, info, kind)
            continue
        if plain in stacks:
            target, suffix = f"blk.{local.split('.')[2]}.{stacks[plain]}", "weight"
        elif plain == "mlp.gate.weight":
            part, target = ROUTER, f"blk.{local.split('.')[2]}.{ROUTER}"
        elif stem in tops:
            target = tops[stem]
        elif stem.startswith("model.layers.") and stem.split(".", 3)[3:] and stem.split(".", 3)[3] in layers:
            part = layers[stem.split(".", 3)[3]]
            target = f"blk.{stem.split('.', 3)[2]}.{part}"
        else:
            raise UnsupportedModelError(f"{info.file}: tensor {name!r} has no place in a GGUF of arch {arch!r}")
        chosen = "f32" if len(info.shape) == 1 or part == ROUTER else choose(info, kind)
        count = heads.get(part, 0) if arch in PERMUTED else 0
        change = "plus one" if arch in HYBRIDS and stem.endswith("norm") else ""
        yield Plan(f"{target}.{suffix}", name, chosen, info.shape, count, change=change)
        if chosen == "nvfp4":
            yield Plan(f"{target}.scale", name, "f32", (1,), 0, "factor")
            if info.format == "nvfp4":
                yield Plan(f"{target}.input_scale", name, "f32", (1,), 0, "inputs")


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The language model's fields, and the architecture."""
    return text_part(checkpoint.config) | {"architectures": checkpoint.config.get("architectures")}


def in_blocks(name: str, last: int) -> str:
    """A tensor's name without what only some releases have; the head for multi-token prediction is layer `last`."""
    name = name.replace("model.language_model.", "model.", 1)
    if name.startswith("mtp.layers."):
        _, _, number, rest = name.split(".", 3)
        return f"model.layers.{last + int(number)}.{rest}"
    return f"model.layers.{last}.{name}" if name.startswith("mtp.") else name


def special(plain: str) -> bool:
    """Whether a tensor of a hybrid's layer changes its shape or its values, or has a name of its own."""
    return plain.startswith(("mtp.", "linear_attn.")) or plain == "mlp.shared_expert_gate.weight"


def hybrid_plan(name: str, local: str, info: TensorInfo, kind: str | None) -> Plan:
    """Where and how a `special` tensor is written."""
    _, _, layer, plain = local.split(".", 3)
    names = {"linear_attn.A_log": "ssm_a", **{v: k for k, v in BARE.items()},
             **{f"mtp.{v}": k for k, v in NEXTN.items()}, **{f"{v}.weight": f"{k}.weight" for k, v in HYBRID.items()}}
    if plain not in names:
        raise UnsupportedModelError(f"{info.file}: tensor {name!r} has no place in a GGUF")
    change = CHANGES.get(plain.removeprefix("linear_attn."), "")
    if plain.startswith("mtp.") and "norm" in plain:
        change = "plus one"
    matrix = plain.endswith("proj.weight") or plain in ("mtp.fc.weight", *(
        f"linear_attn.in_proj_{x}.weight" for x in ("qkv", "z", "a", "b")))
    shape = info.shape if matrix else tuple(n for n in info.shape if n > 1)
    return Plan(f"blk.{layer}.{names[plain]}", name, choose(info, kind) if matrix else "f32", shape, 0, change=change)


def tiled_heads(config: Mapping[str, Any], part: str) -> np.ndarray[Any, Any]:
    """Hugging Face place of every GGUF place along the value heads of a recurrent layer: key heads take turns."""
    nk, nv, dk, dv = (int(setting(config, f"linear_{key}")) for key in (
        "num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim"))
    heads = np.arange(nv).reshape(nk, nv // nk).T.reshape(-1)
    if part in ("in_proj_b", "in_proj_a", "A_log", "dt_bias"):
        return heads
    wide = (heads[:, None] * dv + np.arange(dv)).reshape(-1)
    return np.concatenate((np.arange(2 * nk * dk), 2 * nk * dk + wide)) if part in ("in_proj_qkv", "conv1d") else wide


def changed(w: Weight, item: Plan, config: Mapping[str, Any]) -> Weight:
    """The matrix, or the vector [1, n], as `Plan.change` says. UnsupportedModelError: it would be encoded anew."""
    if item.change == "plus one":
        return Weight("f32", w.shape, (FORMATS[w.format].dequantize(w) + np.float32(1),))
    order = tiled_heads(config, item.source.removesuffix(".weight").rpartition(".")[2])
    if item.change == "rows" and w.shape[0] > 1:
        return FORMATS[w.format].take_rows(w, order)
    if w.format not in DENSE:
        raise UnsupportedModelError(f"tensor {item.source!r} is {w.format}, whose columns cannot change places; "
                                    "convert the model as it was before it was quantised")
    values = FORMATS[w.format].dequantize(w)[:, order]
    return Weight("f32", w.shape, (-np.exp(values) if item.change == "decay" else values,))


def choose(info: TensorInfo, kind: str | None) -> str:
    """The type for a matrix: the wanted one, or its own where rows do not fit. UnsupportedModelError: not in GGUF."""
    chosen = kind or info.format
    chosen = chosen if fits(chosen, info.shape[-1]) else info.format
    if chosen not in TYPES or not fits(chosen, info.shape[-1]):
        raise UnsupportedModelError(f"{info.file}: tensor {info.name!r} is {chosen} with rows of {info.shape[-1]}, for "
                                    f"which GGUF has no type; choose one of {', '.join(TYPES)}")
    return chosen


def stack(checkpoint: Checkpoint, first: re.Match[str], layer: str, kind: str | None) -> Iterator[Plan]:
    """One projection of all experts of a layer as one tensor; `first` is the name of expert 0."""
    base, _, _, projection = first.groups()
    count = 0
    while f"{base}.{count}.{projection}.weight" in checkpoint.tensors:
        count += 1
    info = checkpoint.tensors[first[0]]
    chosen, target = choose(info, kind), f"blk.{layer}.{PROJECTIONS[projection]}"
    name = f"{base}.{{}}.{projection}.weight"
    yield Plan(f"{target}.weight", name, chosen, (count, *info.shape), 0, count=count)
    if chosen == "nvfp4":
        yield Plan(f"{target}.scale", name, "f32", (count,), 0, "factor", count)
        if info.format == "nvfp4":
            yield Plan(f"{target}.input_scale", name, "f32", (count,), 0, "inputs", count)


def stored(checkpoint: Checkpoint, item: Plan) -> np.ndarray[Any, Any]:
    """The bytes to write: dense values, or uint8 rows of blocks; a vector has one dimension."""
    if item.count:
        each = msgspec.structs.replace(item, shape=item.shape[1:] if not item.part else (1,), count=0)
        sources = [item.source.replace("{}", str(e)) for e in range(item.count)]
        return np.concatenate([stored(checkpoint, msgspec.structs.replace(each, source=source)) for source in sources])
    w: Weight = checkpoint.weight(item.source)
    if item.part:
        source = w if w.format == "nvfp4" else encode_fp(FORMATS[w.format].dequantize(w), "nvfp4")
        factors, inputs = (np.asarray(part) for part in source.parts[2:])
        if (factors != factors[0]).any():
            raise UnsupportedModelError(f"tensor {item.source!r} has several factors; GGUF has room for one")
        return factors[:1] if item.part == "factor" else inputs
    if item.change:
        w = changed(w, item, config_of(checkpoint))
    if item.heads:
        order = permuted(item.shape[0], item.heads)
        if len(item.shape) == 1:
            w = Weight(w.format, w.shape, (np.asarray(w.parts[0])[:, order],))
        else:
            w = FORMATS[w.format].take_rows(w, order)
    if item.kind in FLOATS:
        data = FLOATS[item.kind](w if w.format == item.kind else encode_fp(FORMATS[w.format].dequantize(w), item.kind))
    elif item.kind == w.format:
        data = np.asarray(w.parts[0])
    elif item.kind in DENSE:
        data = FORMATS[w.format].dequantize(w).astype(DENSE[item.kind])
    else:
        data = np.asarray(encode(FORMATS[w.format].dequantize(w), item.kind).parts[0])
    return data.reshape(item.shape) if len(item.shape) == 1 else data


def add_config(writer: GGUFWriter, config: Mapping[str, Any], arch: str) -> np.ndarray[Any, Any] | None:
    """Write the model's settings; returns the rope divisors if there are any."""
    heads, hidden = setting(config, "num_attention_heads"), setting(config, "hidden_size")
    dim = config.get("head_dim") or hidden // heads
    theta, scaling = rope_of(config)
    following = add_hybrid(writer, config) if arch in HYBRIDS else 0
    writer.add_block_count(setting(config, "num_hidden_layers") + following)
    writer.add_context_length(setting(config, "max_position_embeddings"))
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config.get("moe_intermediate_size") if arch == "qwen35moe"
                                   else setting(config, "intermediate_size"))
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_layer_norm_rms_eps(setting(config, "rms_norm_eps"))
    writer.add_vocab_size(setting(config, "vocab_size"))
    partial = (config.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0) if arch in HYBRIDS else 1.0
    writer.add_rope_dimension_count(int(dim * partial))
    writer.add_rope_freq_base(theta)
    add_experts(writer, config, arch)
    if config["architectures"][0] == "MistralForCausalLM" and config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if not scaling:
        return None
    if scaling["rope_type"] == "llama3":
        return rope_divisors(theta, dim, scaling)
    if scaling["rope_type"] not in ("linear", "yarn"):
        raise UnsupportedModelError(f"rope scaling {scaling['rope_type']!r} cannot be written to GGUF")
    writer.add_string(f"{arch}.rope.scaling.type", scaling["rope_type"])
    writer.add_rope_scaling_factor(scaling["factor"])
    if scaling["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(setting(scaling, "original_max_position_embeddings"))
        writer.add_rope_scaling_yarn_beta_fast(scaling.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(scaling.get("beta_slow") or 1.0)
    return None


def add_hybrid(writer: GGUFWriter, config: Mapping[str, Any]) -> int:
    """Write what only hybrids have; the number of layers of the head for multi-token prediction."""
    heads, following = setting(config, "linear_num_value_heads"), int(config.get("mtp_num_hidden_layers") or 0)
    fields = read_config({"intermediate_size": 1} | dict(config))
    writer.add_ssm_conv_kernel(setting(config, "linear_conv_kernel_dim"))
    writer.add_ssm_state_size(setting(config, "linear_key_head_dim"))
    writer.add_ssm_group_count(setting(config, "linear_num_key_heads"))
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_inner_size(heads * setting(config, "linear_value_head_dim"))
    recurrent = recurrent_layers(fields, int(config.get("full_attention_interval") or 4))
    writer.add_array(f"{writer.arch}.attention.recurrent_layers", [*recurrent, *[False] * following])
    if config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if following:
        writer.add_nextn_predict_layers(following)
    return following


def add_experts(writer: GGUFWriter, config: Mapping[str, Any], arch: str) -> None:
    """How many experts there are at most, how many a token takes, and whether their weights add up to 1."""
    moe = moe_of(config)
    if moe is not None:
        writer.add_expert_count(max(moe.counts))
        writer.add_expert_used_count(moe.top)
        writer.add_expert_feed_forward_length(moe.inner)
        if not moe.norm and arch not in HYBRIDS:
            writer.add_expert_weights_norm(False)


def moe_of(config: Mapping[str, Any]) -> MoeConfig | None:
    """The experts that a configuration describes, None if it is dense."""
    moe: MoeConfig | None = find_family(config).config(config).moe
    return moe


def add_tokenizer(writer: GGUFWriter, folder: Path, checkpoint: Checkpoint, pre: str | None) -> None:
    """Vocabulary, merges, special ids and chat template from tokenizer.json and tokenizer_config.json."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    state = json.loads(backend.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        raise UnsupportedModelError(f"{folder}: a {model['type']} vocabulary cannot be written; use --no-tokenizer")
    config = config_of(checkpoint)
    size = max(int(config["vocab_size"]), backend.get_vocab_size())
    texts = {i: text for text, i in backend.get_vocab().items()}
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(size)]
    types = [_type(text, model) if i in texts else UNUSED for i, text in enumerate(tokens)]
    for i, added in backend.get_added_tokens_decoder().items():
        types[i] = CONTROL if added.special else USER_DEFINED
    if model.get("unk_token") in backend.get_vocab():
        types[backend.token_to_id(model["unk_token"])] = UNKNOWN
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        ranks = {line.replace(" ", ""): -float(i + 1) for i, line in reversed(list(enumerate(merges)))}
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([ranks.get(text, -float(len(merges) + 1)) for text in tokens])
        writer.add_add_space_prefix("Prepend" in json.dumps(state["normalizer"] or state["pre_tokenizer"]))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre or _pre_name(folder, state))
        writer.add_token_merges(merges)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    ends = checkpoint.generation.get("eos_token_id", config.get("eos_token_id"))
    ends = ends if isinstance(ends, list) else [ends]
    bos, pad = (config.get(k) for k in ("bos_token_id", "pad_token_id"))
    adds = (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_eot_token_id, writer.add_pad_token_id)
    for add, value in zip(adds, (bos, ends[0], ends[1] if len(ends) > 1 else None, pad), strict=True):
        if value is not None:
            add(value)
    settings = folder / "tokenizer_config.json"
    options = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    started = bos is not None and backend.encode("a").ids[:1] == [bos]
    writer.add_add_bos_token(bool(options.get("add_bos_token") or started))
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else options.get("chat_template")
    if isinstance(template, str):
        writer.add_chat_template(template)


def _type(text: str, model: Mapping[str, Any]) -> int:
    byte = model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return BYTE if byte else NORMAL


def _pre_name(folder: Path, state: Mapping[str, Any]) -> str:
    """The GGUF name of the tokenizer's word splitting, found by its regular expressions."""
    from blackwell_infer.text.pretokenizer import PRE_TOKENIZERS

    pre = state["pre_tokenizer"] or {}
    steps = pre.get("pretokenizers", [pre])
    patterns = tuple(s["pattern"].get("Regex", "") for s in steps if s.get("type") == "Split")
    if any(s.get("type") == "ByteLevel" and s.get("use_regex", True) for s in steps):
        patterns = (*patterns, *PRE_TOKENIZERS["gpt-2"].patterns)
    nfc = "NFC" in json.dumps(state["normalizer"])
    for name, kind in PRE_TOKENIZERS.items():
        if (kind.patterns, kind.ignore_merges, kind.nfc) == (patterns, bool(state["model"].get("ignore_merges")), nfc):
            return name
    raise UnsupportedModelError(f"{folder}: unknown word splitting {patterns}; name it with --pre, or --no-tokenizer")


def convert(
    folder: Path, out: Path, *, kind: str | None = None, split: int = 1, tokenizer: bool = True, pre: str | None = None,
) -> list[Path]:
    """Write the model; returns the files."""
    from gguf import GGMLQuantizationType, GGUFWriter

    checkpoint = open_checkpoint(folder)
    name = (checkpoint.config.get("architectures") or [None])[0]
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(f"{folder}: architecture {name!r}; supported are {', '.join(ARCHITECTURES)}")
    arch = ARCHITECTURES[name]
    items = list(plan(checkpoint, arch, kind))
    writer = GGUFWriter(None, arch, split_max_tensors=-(-(len(items) + 1) // split) if split > 1 else 0)
    writer.add_name(folder.resolve().name)
    divisors = add_config(writer, config_of(checkpoint), arch)
    if tokenizer and (folder / "tokenizer.json").is_file():
        add_tokenizer(writer, folder, checkpoint, pre)
    if divisors is not None:
        writer.add_tensor_info(ROPE_FREQS, divisors.shape, divisors.dtype, divisors.nbytes)
    for item in items:
        shape = item.shape
        if FORMATS[item.kind].block > 1:
            shape = (*shape[:-1], shape[-1] // FORMATS[item.kind].block * FORMATS[item.kind].block_bytes)
        dtype = DENSE[item.kind] if item.kind in DENSE else np.dtype(np.uint8)
        writer.add_tensor_info(item.name, shape, dtype, item.nbytes, GGMLQuantizationType[item.kind.upper()])
    writer.write_header_to_file(out)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    for index, item in enumerate(items):
        writer.write_tensor_data(np.ascontiguousarray(stored(checkpoint, item)))
        print(f"\r{index + 1} of {len(items)} tensors", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    files = [Path(f.name) for f in writer.fout or []]
    writer.close()
    return files


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="Hugging Face folder (config.json and safetensors)")
    parser.add_argument("out", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=TYPES, help="type of the matrices (default: the type they have)")
    parser.add_argument("--split", type=int, default=1, metavar="N", help="write the model in up to N files")
    parser.add_argument("--no-tokenizer", action="store_true", help="leave the vocabulary out")
    parser.add_argument("--pre", help="name of the word splitting, where it cannot be told from tokenizer.json")
    args = parser.parse_args(argv)
    try:
        files = convert(
            args.folder, args.out, kind=args.type, split=args.split, tokenizer=not args.no_tokenizer, pre=args.pre)
    except (BlackwellInferError, OSError) as error:
        print(f"hf_to_gguf: {error}", file=sys.stderr)
        return 1
    print(f"{', '.join(str(f) for f in files)}: {sum(f.stat().st_size for f in files)} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
