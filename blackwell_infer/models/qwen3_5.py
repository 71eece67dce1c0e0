"""Qwen3.5 and 3.6, dense and with experts: the text part. Configurations may hold it in `text_config`.

Images give every axis of rotation its own positions; text has one position for all, so rotation is the ordinary one.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.kv.recurrent import RecurrentSpec
from blackwell_infer.models import hybrid, layers
from blackwell_infer.models.moe import moe_config, read_moe
from blackwell_infer.models.rope import read_rope
from blackwell_infer.models.spec import Family

LINEAR = "linear_attention"
OUTER = ("tie_word_embeddings", "remaining_experts_by_layer")
"""Fields that may stand beside `text_config` instead of in it"""

Width = Annotated[int, msgspec.Meta(gt=0, le=1 << 14)]


class HybridFields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of config.json that other families do not have."""

    linear_num_key_heads: Width
    linear_num_value_heads: Width
    linear_key_head_dim: Width
    linear_value_head_dim: Width
    linear_conv_kernel_dim: Annotated[int, msgspec.Meta(ge=2, le=16)] = 4
    full_attention_interval: Annotated[int, msgspec.Meta(gt=0)] = 4
    attn_output_gate: bool = True
    norms_hold_one: bool = False
    """the file stores norm weights with their 1 added (what GGUF translates to)"""
    value_heads_tiled: bool = False
    """value head j belongs to key head j % nk (what GGUF translates to)"""


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the language model, wherever they stand. CheckpointError: text_config is no object."""
    inner = config.get("text_config")
    if inner is None:
        return dict(config)
    if not isinstance(inner, Mapping):
        raise CheckpointError("config field text_config is no object")
    return {name: config[name] for name in OUTER if name in config} | dict(inner)


def qwen3_5_config(config: Mapping[str, Any]) -> hybrid.HybridConfig:
    return decoder(text_part(config))


def qwen3_5_moe_config(config: Mapping[str, Any]) -> hybrid.HybridConfig:
    """Experts in every layer; the weights of those that a token takes always add up to 1."""
    text = text_part(config)
    fields = read_moe(text)
    if fields.moe_intermediate_size is None:
        raise CheckpointError("config field moe_intermediate_size is missing")
    c = decoder({"intermediate_size": fields.moe_intermediate_size} | text)
    moe = moe_config(fields, len(c.recurrent), fields.moe_intermediate_size, norm=True)
    shared = fields.shared_expert_intermediate_size
    return msgspec.structs.replace(c, moe=msgspec.structs.replace(moe, shared=shared))


def decoder(text: Mapping[str, Any]) -> hybrid.HybridConfig:
    """Decode and check; CheckpointError names the field that is missing, mistyped or out of range."""
    c = layers.read_config(text)
    try:
        f = msgspec.convert(dict(text), HybridFields)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"config field: {error}".replace("`$.", "`")) from error
    if not f.attn_output_gate:
        raise UnsupportedModelError("config field attn_output_gate is false; only gated attention is supported")
    if c.attention_bias:
        raise UnsupportedModelError("config field attention_bias is true; that is not supported for this family")
    if f.linear_num_value_heads % f.linear_num_key_heads:
        raise CheckpointError(f"config field linear_num_key_heads {f.linear_num_key_heads} does not divide "
                              f"linear_num_value_heads {f.linear_num_value_heads}")
    head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
    rope = c.rope_parameters or c.rope_scaling or {}
    kind = rope.get("rope_type") or rope.get("type")
    return hybrid.HybridConfig(
        vocab=c.vocab_size, hidden=c.hidden_size, inner=c.intermediate_size, heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads or c.num_attention_heads, head_dim=head_dim,
        max_context=c.max_position_embeddings, eps=c.rms_norm_eps,
        rope=read_rope(rope | ({"rope_type": "default"} if kind == "mrope" else {}), head_dim, c.rope_theta,
                       c.partial_rotary_factor),
        tied=c.tie_word_embeddings is not False, recurrent=recurrent_layers(c, f.full_attention_interval),
        delta=RecurrentSpec(heads=f.linear_num_value_heads, key_heads=f.linear_num_key_heads,
                            key_dim=f.linear_key_head_dim, value_dim=f.linear_value_head_dim,
                            width=f.linear_conv_kernel_dim),
        tiled=f.value_heads_tiled, plus=0.0 if f.norms_hold_one else 1.0)


def recurrent_layers(c: layers.HubConfig, interval: int) -> tuple[bool, ...]:
    """Which layers are recurrent: all but every `interval`-th, unless `layer_types` says it."""
    count = c.num_hidden_layers
    kinds = c.layer_types if c.layer_types is not None else [
        layers.FULL if (i + 1) % interval == 0 else LINEAR for i in range(count)]
    if len(kinds) != count:
        raise CheckpointError(f"config field layer_types has {len(kinds)} entries for {count} layers")
    unknown = sorted(set(kinds) - {layers.FULL, LINEAR})
    if unknown:
        raise UnsupportedModelError(f"config field layer_types holds {', '.join(unknown)}; supported are {layers.FULL} "
                                    f"and {LINEAR}")
    if layers.FULL not in kinds:
        raise UnsupportedModelError("config field layer_types holds no attention at all; that is not supported")
    return tuple(kind == LINEAR for kind in kinds)


QWEN3_5 = Family(
    name="qwen3_5", architectures=("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"), config=qwen3_5_config,
    geometry=hybrid.geometry, build=hybrid.build, forward=hybrid.forward, logits=hybrid.logits, draft=hybrid.DRAFT)

QWEN3_5_MOE = Family(
    name="qwen3_5_moe", architectures=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
    config=qwen3_5_moe_config, geometry=hybrid.geometry, build=hybrid.build, forward=hybrid.forward,
    logits=hybrid.logits, draft=hybrid.DRAFT)
