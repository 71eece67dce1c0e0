"""The decoder that Llama, Mistral, Mixtral and Qwen3 share: configuration, parameters, forward pass over `Ops`.

The MLP of a layer is dense, or sparse as `models.moe` says.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np

from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.kv.spec import CacheSpec, KVState
from blackwell_infer.models import fused
from blackwell_infer.models.moe import MoeConfig, SparseMlp, build_sparse, sparse_mlp
from blackwell_infer.models.rope import Rope, frequencies, read_rope, rope_table
from blackwell_infer.models.spec import Geometry, Take
from blackwell_infer.ops.api import Ops
from blackwell_infer.ops.batch import Batch
from blackwell_infer.quant.format import Linear, Quantized, Weight
from blackwell_infer.types import Array

Size = Annotated[int, msgspec.Meta(gt=0, le=1 << 31)]
Layers = Annotated[int, msgspec.Meta(gt=0, le=4096)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
WIDEST_HEAD = 1 << 14
FULL, SLIDING = "full_attention", "sliding_attention"


class HubConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of config.json that all families read; others are ignored."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size
    rms_norm_eps: Positive
    hidden_act: str = "silu"
    rope_theta: Positive | None = None
    partial_rotary_factor: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    sliding_window: Size | None = None
    use_sliding_window: bool | None = None
    max_window_layers: Annotated[int, msgspec.Meta(ge=0)] | None = None
    layer_types: list[str] | None = None


class DenseConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder. `windows` holds each layer's sliding window in tokens, 0 for full attention; without `moe` every MLP
    is dense."""

    vocab: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    max_context: int
    eps: float
    rope: Rope
    windows: tuple[int, ...]
    tied: bool
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    moe: MoeConfig | None = None


class DenseMlp(msgspec.Struct, frozen=True):
    """A gated MLP that every token goes through. Biases may be absent."""

    gate_up: Linear
    gate_up_bias: Array | None
    down: Linear
    down_bias: Array | None


class LayerParams(msgspec.Struct, frozen=True):
    """One layer: the norm before attention, attention, the norm before the MLP, the MLP. Biases may be absent."""

    attention_norm: Array
    qkv: Linear
    qkv_bias: Array | None
    q_norm: Array | None
    k_norm: Array | None
    out: Linear
    out_bias: Array | None
    mlp_norm: Array
    mlp: DenseMlp | SparseMlp


class DenseParams(msgspec.Struct, frozen=True):
    """All parameters. `head` is the output projection; with tied embeddings it is made of the same tensor."""

    embed: Weight
    rope: Array
    layers: tuple[LayerParams, ...]
    norm: Array
    head: Linear


def read_config(config: Mapping[str, Any]) -> HubConfig:
    """Decode and check config.json; CheckpointError names the field that is missing, mistyped or out of range."""
    try:
        c = msgspec.convert(dict(config), HubConfig)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"config field: {error}".replace("`$.", "`")) from error
    if c.hidden_act != "silu":
        raise UnsupportedModelError(f"config field hidden_act is {c.hidden_act!r}; only 'silu' is supported")
    if c.head_dim is None and c.hidden_size % c.num_attention_heads:
        raise CheckpointError(f"config field head_dim is missing, and hidden_size {c.hidden_size} is no multiple of "
                              f"num_attention_heads {c.num_attention_heads}")
    if c.num_attention_heads % (c.num_key_value_heads or c.num_attention_heads):
        raise CheckpointError(f"config field num_key_value_heads {c.num_key_value_heads} does not divide "
                              f"num_attention_heads {c.num_attention_heads}")
    width = c.head_dim or c.hidden_size // c.num_attention_heads
    if width > WIDEST_HEAD:
        raise CheckpointError(f"config field head_dim is {width}; no head is wider than {WIDEST_HEAD}")
    return c


def layer_windows(c: HubConfig, window: int, default: tuple[str, ...]) -> tuple[int, ...]:
    """Window per layer from `layer_types` (or the family's default kinds); 0 is full attention."""
    kinds = default if c.layer_types is None else tuple(c.layer_types)
    if len(kinds) != c.num_hidden_layers:
        raise CheckpointError(f"config field layer_types has {len(kinds)} entries for {c.num_hidden_layers} layers")
    unknown = sorted(set(kinds) - {FULL, SLIDING})
    if unknown:
        raise UnsupportedModelError(f"config field layer_types holds {', '.join(unknown)}; "
                                    f"supported are {FULL} and {SLIDING}")
    if SLIDING in kinds and not window:
        raise CheckpointError(f"config field layer_types holds {SLIDING}, but there is no sliding_window")
    return tuple(window if kind == SLIDING else 0 for kind in kinds)


def dense_config(c: HubConfig, windows: tuple[int, ...], *, biases: bool = False, qk_norm: bool = False) -> DenseConfig:
    """The decoder of a checked config.json. An absent `tie_word_embeddings` leaves it to whether lm_head is stored."""
    head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
    return DenseConfig(
        vocab=c.vocab_size, hidden=c.hidden_size, inner=c.intermediate_size, heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads or c.num_attention_heads, head_dim=head_dim,
        max_context=c.max_position_embeddings, eps=c.rms_norm_eps,
        rope=read_rope(c.rope_parameters or c.rope_scaling or {}, head_dim, c.rope_theta, c.partial_rotary_factor),
        windows=windows, tied=c.tie_word_embeddings is not False,
        attention_bias=biases and c.attention_bias is True, mlp_bias=biases and c.mlp_bias is True, qk_norm=qk_norm)


def geometry(cfg: DenseConfig) -> Geometry:
    cache = tuple(CacheSpec(kv_heads=cfg.kv_heads, head_dim=cfg.head_dim, format="", window=n) for n in cfg.windows)
    return Geometry(vocab=cfg.vocab, hidden=cfg.hidden, max_context=cfg.max_context, cache=cache)


def fused_bias(take: Take, names: tuple[str, ...], sizes: tuple[int, ...]) -> Array:
    """The biases of a fused projection, end to end."""
    parts: list[np.ndarray[Any, Any]] = []
    for name, size in zip(names, sizes, strict=True):
        values = take.host(name)
        if values is None:
            raise CheckpointError(f"tensor {name} [{size}] is missing; is the checkpoint complete?")
        if values.shape != (size,):
            raise CheckpointError(f"tensor {name} has shape {list(values.shape)}, the configuration asks for [{size}]")
        parts.append(values)
    return take.constant(" + ".join(names), np.concatenate(parts).astype(np.float32))


def build_layer(cfg: DenseConfig, take: Take, i: int) -> LayerParams:
    base = f"model.layers.{i}."
    attention, mlp = base + "self_attn.", base + "mlp."
    q, kv, h, n = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim, cfg.hidden, cfg.inner

    def projection(prefix: str, names: tuple[str, ...], rows: tuple[int, ...], cols: int,
                   biased: bool) -> tuple[Linear, Array | None]:
        weight = take.linear([f"{prefix}{x}_proj.weight" for x in names], [(r, cols) for r in rows])
        return weight, fused_bias(take, tuple(f"{prefix}{x}_proj.bias" for x in names), rows) if biased else None

    qkv, qkv_bias = projection(attention, ("q", "k", "v"), (q, kv, kv), h, cfg.attention_bias)
    out, out_bias = projection(attention, ("o",), (h,), q, cfg.attention_bias)
    return LayerParams(
        attention_norm=take.vector(base + "input_layernorm.weight", h), qkv=qkv, qkv_bias=qkv_bias,
        q_norm=take.vector(attention + "q_norm.weight", cfg.head_dim) if cfg.qk_norm else None,
        k_norm=take.vector(attention + "k_norm.weight", cfg.head_dim) if cfg.qk_norm else None,
        out=out, out_bias=out_bias, mlp_norm=take.vector(base + "post_attention_layernorm.weight", h),
        mlp=build_sparse(cfg.moe, take, base, i, h) if cfg.moe is not None and cfg.moe.counts[i] else DenseMlp(
            *projection(mlp, ("gate", "up"), (n, n), h, cfg.mlp_bias),
            *projection(mlp, ("down",), (h,), n, cfg.mlp_bias)))


def build(cfg: DenseConfig, take: Take, max_context: int) -> DenseParams:
    """Ask `take` for every parameter; the rope table covers `max_context` positions."""
    embedding, head, shape = "model.embed_tokens.weight", "lm_head.weight", (cfg.vocab, cfg.hidden)
    angles = frequencies(cfg.rope, take.host("rope_freqs.weight"))
    return DenseParams(
        embed=take.table(embedding, shape),
        rope=take.computed("rope", (max_context, 2, len(angles)), lambda: rope_table(angles, max_context)),
        layers=tuple(build_layer(cfg, take, i) for i in range(len(cfg.windows))),
        norm=take.vector("model.norm.weight", cfg.hidden),
        head=take.linear([embedding if cfg.tied and not take.has(head) else head], [shape]))


def forward(ops: Ops, cfg: DenseConfig, params: DenseParams, state: KVState, batch: Batch, dtype: str) -> Array:
    """Hidden states [T, H] after the final norm; keys and values of the batch are appended to `state`."""
    scale = cfg.head_dim**-0.5
    residual = ops.embed(params.embed, batch.ids, dtype)
    h = fused.rms_norm(ops, residual, params.layers[0].attention_norm, cfg.eps, params.layers[0].qkv)
    # The norm that follows each layer, and the projection that takes what it makes.
    after = (*((p.attention_norm, p.qkv) for p in params.layers[1:]), (params.norm, ()))
    for p, kv, window, (norm, following) in zip(params.layers, state.layers, cfg.windows, after, strict=True):
        qkv = fused.linear(ops, h, p.qkv, p.qkv_bias, dtype)
        x = ops.attention_(kv, qkv, batch, params.rope, cfg.heads, scale, window, q_norm=p.q_norm, k_norm=p.k_norm,
                           eps=cfg.eps)
        x = ops.linear(x, p.out, p.out_bias)
        x, residual = feed_forward(ops, p.mlp, p.mlp_norm, x, residual, cfg.eps, dtype)
        residual, h = fused.add_rms_norm(ops, x, residual, norm, cfg.eps, following)
    assert not isinstance(h, Quantized)
    return h


def feed_forward(ops: Ops, mlp: DenseMlp | SparseMlp, norm: Array, x: Array, residual: Array, eps: float,
                 dtype: str) -> tuple[Array, Array]:
    """(MLP of the normed sum, the sum) of what attention made [T, H] and the residual."""
    if isinstance(mlp, SparseMlp):
        residual, h = ops.add_rms_norm(x, residual, norm, eps)
        return sparse_mlp(ops, mlp, h), residual
    residual, into = fused.add_rms_norm(ops, x, residual, norm, eps, mlp.gate_up)
    inner = fused.swiglu(ops, fused.linear(ops, into, mlp.gate_up, mlp.gate_up_bias, dtype), mlp.down)
    return fused.linear(ops, inner, mlp.down, mlp.down_bias, dtype), residual


def logits(ops: Ops, cfg: DenseConfig, params: DenseParams, hidden: Array) -> Array:
    """Float32 logits [N, V] of hidden states [N, H]."""
    return ops.logits(hidden, params.head)
