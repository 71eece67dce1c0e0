"""GGUF metadata and tensor names -> Hugging Face config and names, and which stored rows make up a tensor.

Conversion to GGUF permutes the rows of q and k per head for arch `llama` (Hugging Face [2, d/2] -> [d/2, 2], for
interleaved rope); a `Source` says so, and the reader undoes it. Of hybrids it adds 1 to norm weights, stores
-exp(A_log), and moves the value heads of recurrent layers from groups by key head to an order in which key heads take
turns. Columns of quantised output projections cannot be moved back, so all of this stays, and the configuration says so
(`norms_hold_one`, `value_heads_tiled`; the tensor `ssm_a`). Facts: the GGUF specification and its converters.
"""
from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec

from blackwell_infer.errors import CheckpointError, UnsupportedModelError

GLOBAL: Mapping[str, str] = MappingProxyType({
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
})
LAYER: Mapping[str, str] = MappingProxyType({
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate",
})
STACKED: Mapping[str, str] = MappingProxyType({
    "ffn_gate_exps": "mlp.experts.gate_proj", "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj", "ffn_down_exps": "mlp.experts.down_proj",
})
"""Tensors of all experts of a layer [experts, out, in]. Hugging Face has the last two; the names have no suffix."""
EXPERT: Mapping[str, str] = MappingProxyType({
    "ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj",
})
"""Tensors of one expert in old files: blk.L.ffn_gate.E.weight."""
HYBRID: Mapping[str, str] = MappingProxyType({
    "post_attention_norm": "post_attention_layernorm", "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z", "ssm_alpha": "linear_attn.in_proj_a", "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d", "ssm_norm": "linear_attn.norm", "ssm_out": "linear_attn.out_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
})
"""Tensors of layers that only hybrids have, or call so"""
BARE: Mapping[str, str] = MappingProxyType({"ssm_a": "linear_attn.ssm_a", "ssm_dt.bias": "linear_attn.dt_bias"})
"""The same, whole names in Hugging Face"""
NEXTN: Mapping[str, str] = MappingProxyType({
    "nextn.eh_proj.weight": "fc.weight", "nextn.enorm.weight": "pre_fc_norm_embedding.weight",
    "nextn.hnorm.weight": "pre_fc_norm_hidden.weight", "nextn.shared_head_norm.weight": "norm.weight",
    "nextn.embed_tokens.weight": "embed_tokens.weight", "nextn.shared_head_head.weight": "lm_head.weight",
})
"""Of the block behind the last layer, which is the head for multi-token prediction: what is no part of its layer. Files
leave out what the head shares with the model: usually the last two, and the norm where it is the model's."""
HYBRIDS: Mapping[str, tuple[str, str]] = MappingProxyType({
    "qwen35": ("Qwen3_5ForCausalLM", "qwen3_5"), "qwen35moe": ("Qwen3_5MoeForCausalLM", "qwen3_5_moe"),
})
"""(architecture, model_type) of hybrids"""
ROPE_FREQS = "rope_freqs.weight"
PERMUTED = ("llama",)
"""Architectures whose q and k rows are stored permuted."""

_BLOCK = re.compile(r"blk\.(\d+)\.([a-z0-9_]+)\.(weight|bias)")
_WHOLE = re.compile(r"blk\.(\d+)\.(.+)")
_EXPERT = re.compile(r"blk\.(\d+)\.(ffn_gate|ffn_up|ffn_down)\.(\d+)\.weight")
_NO_TOKEN = 0xFFFFFFFF


class Source(msgspec.Struct, frozen=True):
    """Rows `start` to `stop` of stored tensor `name`; `heads` > 0: their order per head is to be undone.

    `shape` is the resulting tensor's, in NumPy order. `known`: the name was translated, so the family will read it.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    heads: int = 0
    known: bool = True


class Translation(msgspec.Struct, frozen=True):
    """A GGUF model in Hugging Face terms."""

    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    sources: Mapping[str, Source]


class _Keys:
    """Typed look-ups of `<arch>.<key>`; errors name the key."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], arch: str) -> None:
        self.path = path
        self.metadata = metadata
        self.arch = arch

    def integer(self, key: str, default: int | None = None, *, some: bool = False) -> int:
        """A positive number, which may be given for every layer; with `some`, layers that have none say 0."""
        value = self.metadata.get(f"{self.arch}.{key}", default)
        if some and isinstance(value, list):
            value = [v for v in value if v != 0]
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]                     # some converters write one value per layer
        if isinstance(value, list):
            what = f"{self.path}: metadata '{self.arch}.{key}'"
            raise UnsupportedModelError(f"{what} differs between layers; that is not supported")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            self._fail(key, value, "a positive integer")
        return int(value)

    def real(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(f"{self.arch}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._fail(key, value, "a finite number")
        return float(value)

    def has(self, key: str) -> bool:
        return f"{self.arch}.{key}" in self.metadata

    def _fail(self, key: str, value: Any, wanted: str) -> NoReturn:
        state = "is missing" if value is None else f"is {value!r}, not {wanted}"
        raise CheckpointError(f"{self.path}: metadata '{self.arch}.{key}' {state}; convert the model again")


def translate(path: Path, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Translation:
    """Config, generation settings and tensor sources of a GGUF model.

    `shapes` are the stored tensors' (NumPy order). An architecture without a mapping keeps its own name in
    `config["architectures"]` and its own tensor names, so that whoever picks the family can refuse it by name.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        raise CheckpointError(f"{path}: metadata 'general.architecture' is missing or empty; convert it again")
    generation = _generation(metadata)
    if arch not in ("llama", "qwen3", "qwen3moe", *HYBRIDS):
        config: dict[str, Any] = {"architectures": [arch], "model_type": arch, **_tokens(metadata)}
        sources = {name: Source(name, shape, 0, shape[0], known=False) for name, shape in shapes.items()}
        return Translation(config, generation, MappingProxyType(sources))
    keys = _Keys(path, metadata, arch)
    config = _config(keys, shapes) | _tokens(metadata)
    return Translation(config, generation, MappingProxyType(_sources(path, arch, config, shapes)))


def _config(keys: _Keys, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", max(hidden // heads, 1))
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(f"{keys.path}: keys and values of different head length are not supported")
    hybrid = keys.arch in HYBRIDS
    if not hybrid and keys.integer("rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedModelError(f"{keys.path}: rope over a part of the head is not supported for '{keys.arch}'")
    if keys.metadata.get(f"{keys.arch}.attention.causal", True) is not True:
        raise UnsupportedModelError(f"{keys.path}: a model without causal attention (an encoder) is not supported")
    embedding = shapes.get("token_embd.weight")
    tokens = keys.metadata.get("tokenizer.ggml.tokens") if embedding is None and not keys.has("vocab_size") else None
    vocab = embedding[0] if embedding else keys.integer("vocab_size", len(tokens) if tokens else None)
    window = keys.metadata.get(f"{keys.arch}.attention.sliding_window", 0)
    experts = keys.metadata.get(f"{keys.arch}.expert_count", 0)
    kind = _architecture(keys.arch, bool(window), bool(experts))
    more = (_experts(keys, shapes) if experts else {}) | (_hybrid(keys, head_dim) if hybrid else {})
    return more | {
        "architectures": [kind[0]],
        "model_type": kind[1],
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length", more.get("moe_intermediate_size")),
        "num_hidden_layers": keys.integer("block_count") - more.get("mtp_num_hidden_layers", 0),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads, some=hybrid),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.real("rope.freq_base", 10000.0),
        "rope_scaling": None if ROPE_FREQS in shapes else _rope_scaling(keys),
        "sliding_window": keys.integer("attention.sliding_window") if window else None,
        "attention_bias": any(n.endswith(".bias") and ".attn_" in n for n in shapes),
        "mlp_bias": any(n.endswith(".bias") and ".ffn_" in n for n in shapes),
        "tie_word_embeddings": "output.weight" not in shapes,
        "vocab_size": vocab,
        "max_position_embeddings": keys.integer("context_length"),
    }


def _hybrid(keys: _Keys, head_dim: int) -> dict[str, Any]:
    """The fields about recurrent layers and multi-token prediction, and what conversion did (see above)."""
    heads, inner = keys.integer("ssm.time_step_rank"), keys.integer("ssm.inner_size")
    if inner % heads:
        raise CheckpointError(f"{keys.path}: metadata '{keys.arch}.ssm.inner_size' {inner} is no multiple of the "
                              f"{heads} heads; convert the model again")
    following = keys.integer("nextn_predict_layers") if keys.metadata.get(f"{keys.arch}.nextn_predict_layers") else 0
    count = keys.integer("block_count") - following
    listed = keys.metadata.get(f"{keys.arch}.attention.recurrent_layers")
    every = keys.integer("full_attention_interval", 4)
    recurrent = [bool(r) for r in listed[:count]] if isinstance(listed, list) else [(i + 1) % every > 0
                                                                                    for i in range(count)]
    return {
        "linear_num_value_heads": heads, "linear_value_head_dim": inner // heads,
        "linear_num_key_heads": keys.integer("ssm.group_count"), "linear_key_head_dim": keys.integer("ssm.state_size"),
        "linear_conv_kernel_dim": keys.integer("ssm.conv_kernel"),
        "layer_types": ["linear_attention" if r else "full_attention" for r in recurrent],
        "partial_rotary_factor": keys.integer("rope.dimension_count", head_dim) / head_dim,
        "shared_expert_intermediate_size": keys.integer("expert_shared_feed_forward_length")
        if keys.has("expert_shared_feed_forward_length") else 0,
        "mtp_num_hidden_layers": following, "norms_hold_one": True, "value_heads_tiled": True,
    }


def _experts(keys: _Keys, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The fields about experts. The number is the largest of any layer: routers say how many each has.

    Weights are made to add up to 1 unless a key says otherwise. Layers without a router are dense.
    """
    layers = range(keys.integer("block_count"))
    inner = keys.integer("expert_feed_forward_length", keys.integer("feed_forward_length", 1))
    number = keys.metadata[f"{keys.arch}.expert_count"]
    each = isinstance(number, list) and all(type(n) is int and n >= 0 for n in number)
    return {
        "num_experts": max(number) if each else keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "moe_intermediate_size": inner,
        "norm_topk_prob": keys.metadata.get(f"{keys.arch}.expert_weights_norm", True),
        "mlp_only_layers": [i for i in layers if f"blk.{i}.ffn_gate_inp.weight" not in shapes],
    }


def _architecture(arch: str, window: bool, experts: bool) -> tuple[str, str]:
    """(architecture, model_type): GGUF stores Llama, Mistral and Mixtral as `llama`."""
    if arch in HYBRIDS:
        return HYBRIDS[arch]
    if arch == "qwen3":
        return "Qwen3ForCausalLM", "qwen3"
    if arch == "qwen3moe":
        return "Qwen3MoeForCausalLM", "qwen3_moe"
    if experts:
        return "MixtralForCausalLM", "mixtral"
    return ("MistralForCausalLM", "mistral") if window else ("LlamaForCausalLM", "llama")


def _rope_scaling(keys: _Keys) -> dict[str, Any] | None:
    """rope.scaling.* in Hugging Face terms. Unknown kinds keep their name, for the family to refuse.

    The attention factor of yarn is 0.1 ln(factor) + 1 (Peng et al., YaRN, eq. 22), times the file's own if it has one.
    """
    kind = keys.metadata.get(f"{keys.arch}.rope.scaling.type", "linear" if keys.has("rope.scaling.factor") else "none")
    if kind == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": keys.real("rope.scaling.factor", 1.0)}
    if keys.has("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = keys.integer("rope.scaling.original_context_length")
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if keys.has(f"rope.scaling.{theirs}"):
            scaling[ours] = keys.real(f"rope.scaling.{theirs}")
    if keys.has("rope.scaling.attn_factor"):
        base = 0.1 * math.log(max(scaling["factor"], 1.0)) + 1 if kind == "yarn" else 1.0
        scaling["attention_factor"] = base * keys.real("rope.scaling.attn_factor")
    return scaling


def _token(metadata: Mapping[str, Any], name: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return value if isinstance(value, int) and 0 <= value < _NO_TOKEN else None


def _tokens(metadata: Mapping[str, Any]) -> dict[str, int]:
    pairs = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding", "unk_token_id": "unknown"}
    return {key: value for key, name in pairs.items() if (value := _token(metadata, name)) is not None}


def _generation(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What generation_config.json would say: every id that ends an answer, and the author's sampling settings."""
    out: dict[str, Any] = {k: v for k, v in _tokens(metadata).items() if k in ("bos_token_id", "pad_token_id")}
    ends = [value for name in ("eos", "eot", "eom") if (value := _token(metadata, name)) is not None]
    if ends:
        out["eos_token_id"] = list(dict.fromkeys(ends))
    names = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
    for key, name in names.items():
        value = metadata.get(f"general.sampling.{name}")
        if isinstance(value, int | float):
            out[key] = value
    return out


def _sources(
    path: Path, arch: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Source]:
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    order = {"attn_q": heads, "attn_k": kv_heads} if arch in PERMUTED else {}
    names, last = {**LAYER, **HYBRID} if arch in HYBRIDS else LAYER, config["num_hidden_layers"]
    out: dict[str, Source] = {}

    def put(name: str, source: Source) -> None:
        if name in out:
            raise CheckpointError(f"{path}: tensors '{out[name].name}' and '{source.name}' are both {name}")
        out[name] = source

    for name, shape in shapes.items():
        stem, _, suffix = name.rpartition(".")
        match, expert = _BLOCK.fullmatch(name), _EXPERT.fullmatch(name)
        own = _own(name, last) if arch in HYBRIDS else ""
        if own:
            put(own, Source(name, shape, 0, shape[0]))
            continue
        if expert is not None:
            put(f"model.layers.{expert[1]}.mlp.experts.{expert[3]}.{EXPERT[expert[2]]}.weight",
                Source(name, shape, 0, shape[0]))
            continue
        if match is None:
            known = stem in GLOBAL or name == ROPE_FREQS
            put(f"{GLOBAL[stem]}.{suffix}" if stem in GLOBAL else name, Source(name, shape, 0, shape[0], known=known))
            continue
        part = match[2]
        layer = f"mtp.layers.{int(match[1]) - last}" if arch in HYBRIDS and int(match[1]) >= last else (
            f"model.layers.{match[1]}")
        if part == "attn_qkv" and arch not in HYBRIDS:
            sizes = {"attn_q": heads * dim, "attn_k": kv_heads * dim, "attn_v": kv_heads * dim}
            if shape[0] != sum(sizes.values()):
                raise CheckpointError(f"{path}: tensor '{name}' has {shape[0]} rows, not {sum(sizes.values())}")
            start = 0
            for piece, rows in sizes.items():
                source = Source(name, (rows, *shape[1:]), start, start + rows, order.get(piece, 0))
                put(f"{layer}.{LAYER[piece]}.{suffix}", source)
                start += rows
        elif part in STACKED and suffix == "weight":
            put(f"{layer}.{STACKED[part]}", Source(name, shape, 0, shape[0]))
        elif part == "ffn_gate_inp_shexp" and len(shape) == 1:  # a matrix of one row
            put(f"{layer}.{names.get(part, part)}.{suffix}", Source(name, (1, *shape), 0, shape[0]))
        elif part in names:
            count = order.get(part, 0)
            if count and shape[0] % (2 * count):
                raise CheckpointError(f"{path}: tensor '{name}' has {shape[0]} rows, no pairs for {count} heads")
            put(f"{layer}.{names[part]}.{suffix}", Source(name, shape, 0, shape[0], count))
        else:
            put(name, Source(name, shape, 0, shape[0], known=False))
    if "mtp.fc.weight" in out and "model.norm.weight" in out:
        out.setdefault("mtp.norm.weight", out["model.norm.weight"])
    return out


def _own(name: str, last: int) -> str:
    """The Hugging Face name of a tensor of a hybrid's block that is none of a layer's usual ones, else ""."""
    match = _WHOLE.fullmatch(name)
    if match is None:
        return ""
    if match[2] in BARE:
        return f"model.layers.{match[1]}.{BARE[match[2]]}"
    return f"mtp.{NEXTN[match[2]]}" if match[2] in NEXTN and int(match[1]) == last else ""
