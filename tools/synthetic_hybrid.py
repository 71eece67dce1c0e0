"""Hybrids of recurrent layers and gated attention (Qwen3.5 and 3.6): their tensors and settings. Part of
tools/synthetic.py, whose `Shape` the functions take."""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from synthetic_entries import Entry, linear

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from synthetic import Shape

ROTATED = 4
"""One dimension of a head in so many is rotated"""
PREFIX = "model.language_model."
FUSED_QKV = {"Q4_K": "Q5_K"}
"""What the usual mix takes for the joint q, k, v of recurrent layers, by base type"""
MIXED = {"attention": "hf-fp8", "mlp": "hf-nvfp4", "head": "hf-nvfp4"}
"""The published mix that hf-nvfp4 means"""


class Delta(msgspec.Struct, frozen=True):
    """Key and value heads of recurrent layers, their widths, and how often a layer is one of full attention."""

    key_heads: int
    heads: int
    key_dim: int = 128
    value_dim: int = 128
    every: int = 4
    taps: int = 4

    @property
    def channels(self) -> int:
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    @property
    def inner(self) -> int:
        return self.heads * self.value_dim


def gguf_layer(s: Shape, d: Delta, i: int, base: str, more: str) -> Iterator[Entry]:
    """The tensors of block i; the one behind the last layer is the head for multi-token prediction."""
    b = f"blk.{i}."

    def matrix(name: str, form: str, *shape: int) -> Entry:
        return Entry(f"{b}{name}.weight", form, shape, form)

    def ones(name: str, size: int) -> Entry:
        return Entry(f"{b}{name}.weight", "F32", (size,), "=1")

    yield ones("attn_norm", s.hidden)
    yield ones("post_attention_norm", s.hidden)
    if i == s.layers:
        yield matrix("nextn.eh_proj", base, s.hidden, 2 * s.hidden)
        yield from (ones(f"nextn.{name}", s.hidden) for name in ("enorm", "hnorm", "shared_head_norm"))
    if i < s.layers and (i + 1) % d.every:
        yield matrix("attn_qkv", FUSED_QKV.get(base, base), d.channels, s.hidden)
        yield matrix("attn_gate", base, d.inner, s.hidden)
        yield matrix("ssm_beta", base, d.heads, s.hidden)
        yield matrix("ssm_alpha", base, d.heads, s.hidden)
        yield Entry(f"{b}ssm_conv1d.weight", "F32", (d.channels, d.taps), "tap F32")
        yield Entry(f"{b}ssm_dt.bias", "F32", (d.heads,), "=-4")
        yield Entry(f"{b}ssm_a", "F32", (d.heads,), "=-1")
        yield ones("ssm_norm", d.value_dim)
        yield matrix("ssm_out", base, s.hidden, d.inner)
    else:
        yield matrix("attn_q", base, 2 * s.heads * s.head_dim, s.hidden)
        yield matrix("attn_k", base, s.kv_heads * s.head_dim, s.hidden)
        yield matrix("attn_v", more, s.kv_heads * s.head_dim, s.hidden)
        yield matrix("attn_output", base, s.hidden, s.heads * s.head_dim)
        yield ones("attn_q_norm", s.head_dim)
        yield ones("attn_k_norm", s.head_dim)
    stack, last = ((s.experts,), "_exps") if s.experts else ((), "")
    if s.experts:
        yield matrix("ffn_gate_inp", "F32", s.experts, s.hidden)
        yield Entry(f"{b}ffn_gate_inp_shexp.weight", "F32", (s.hidden,), "F32")
    for suffix, shape in ((last, stack), *([("_shexp", ())] if s.experts else [])):
        yield matrix("ffn_gate" + suffix, base, *shape, s.mlp, s.hidden)
        yield matrix("ffn_up" + suffix, base, *shape, s.mlp, s.hidden)
        yield matrix("ffn_down" + suffix, more, *shape, s.hidden, s.mlp)


def add_delta(writer: GGUFWriter, d: Delta, layers: int, shared: int) -> None:
    """Settings that only hybrids have; `shared` is the width of the expert that all tokens share."""
    writer.add_ssm_conv_kernel(d.taps)
    writer.add_ssm_state_size(d.key_dim)
    writer.add_ssm_group_count(d.key_heads)
    writer.add_ssm_time_step_rank(d.heads)
    writer.add_ssm_inner_size(d.inner)
    writer.add_full_attention_interval(d.every)
    writer.add_nextn_predict_layers(1)
    if shared:
        writer.add_expert_shared_feed_forward_length(shared)


def part_of(layout: str, part: str) -> str:
    """The layout of a part of the model."""
    if layout == "hf-nvfp4":
        return MIXED[part]
    return "hf-bf16" if part == "head" else layout


def hf_hybrid(s: Shape, d: Delta, layout: str) -> Iterator[Entry]:
    """Every tensor of a folder."""
    yield Entry(f"{PREFIX}embed_tokens.weight", "BF16", (s.vocab, s.hidden), "BF16")
    for i in range(s.layers):
        yield from hf_layer(s, d, f"{PREFIX}layers.{i}.", layout, (i + 1) % d.every > 0)
    yield norm(f"{PREFIX}norm", s.hidden)
    if not s.tied:
        yield from linear(part_of(layout, "head"), "lm_head", s.vocab, s.hidden)
    yield from linear("hf-bf16", "mtp.fc", s.hidden, 2 * s.hidden)
    for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        yield norm(f"mtp.{name}", s.hidden)
    yield from hf_layer(s, d, "mtp.layers.0.", "hf-bf16", False)


def norm(name: str, size: int) -> Entry:
    """A norm whose weight is 1 + 0."""
    return Entry(f"{name}.weight", "BF16", (size,), "zero BF16")


def hf_layer(s: Shape, d: Delta, b: str, layout: str, recurrent: bool) -> Iterator[Entry]:
    """The tensors of a layer below `b`. Experts of bfloat16 are stored as one tensor, others one by one."""
    mixer, mlp = part_of(layout, "attention"), part_of(layout, "mlp")
    yield norm(b + "input_layernorm", s.hidden)
    yield norm(b + "post_attention_layernorm", s.hidden)
    if recurrent:
        a = b + "linear_attn."
        yield from linear(mixer, a + "in_proj_qkv", d.channels, s.hidden)
        yield from linear(mixer, a + "in_proj_z", d.inner, s.hidden)
        yield from linear("hf-bf16", a + "in_proj_b", d.heads, s.hidden)
        yield from linear("hf-bf16", a + "in_proj_a", d.heads, s.hidden)
        yield Entry(a + "conv1d.weight", "BF16", (d.channels, 1, d.taps), "tap BF16")
        yield Entry(a + "A_log", "F32", (d.heads,), "=0")
        yield Entry(a + "dt_bias", "F32", (d.heads,), "=-4")
        yield Entry(a + "norm.weight", "BF16", (d.value_dim,), "one BF16")
        yield from linear(mixer, a + "out_proj", s.hidden, d.inner)
    else:
        a = b + "self_attn."
        yield norm(a + "q_norm", s.head_dim)
        yield norm(a + "k_norm", s.head_dim)
        yield from linear(mixer, a + "q_proj", 2 * s.heads * s.head_dim, s.hidden)
        yield from linear(mixer, a + "k_proj", s.kv_heads * s.head_dim, s.hidden)
        yield from linear(mixer, a + "v_proj", s.kv_heads * s.head_dim, s.hidden)
        yield from linear(mixer, a + "o_proj", s.hidden, s.heads * s.head_dim)
    modules = [b + "mlp."]
    if s.experts:
        yield Entry(b + "mlp.gate.weight", "BF16", (s.experts, s.hidden), "BF16")
        yield Entry(b + "mlp.shared_expert_gate.weight", "BF16", (1, s.hidden), "BF16")
        modules = [b + "mlp.shared_expert."]
        if mlp == "hf-bf16":
            yield Entry(b + "mlp.experts.gate_up_proj", "BF16", (s.experts, 2 * s.mlp, s.hidden), "BF16")
            yield Entry(b + "mlp.experts.down_proj", "BF16", (s.experts, s.hidden, s.mlp), "BF16")
        else:
            modules += [f"{b}mlp.experts.{e}." for e in range(s.experts)]
    for module in modules:
        yield from linear(mlp, module + "gate_proj", s.mlp, s.hidden)
        yield from linear(mlp, module + "up_proj", s.mlp, s.hidden)
        yield from linear(mlp, module + "down_proj", s.hidden, s.mlp)


def hybrid_config(s: Shape, d: Delta, layout: str, architecture: str, kind: str, eps: float) -> dict[str, Any]:
    """config.json, with the language model's fields in `text_config` as published."""
    text: dict[str, Any] = {
        "model_type": f"{kind}_text", "dtype": "bfloat16", "hidden_size": s.hidden, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim,
        "vocab_size": s.vocab, "rms_norm_eps": eps, "max_position_embeddings": s.context, "hidden_act": "silu",
        "attention_bias": False, "attn_output_gate": True, "eos_token_id": s.vocab - 1, "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False, "full_attention_interval": d.every,
        "layer_types": ["linear_attention" if (i + 1) % d.every else "full_attention" for i in range(s.layers)],
        "linear_num_key_heads": d.key_heads, "linear_num_value_heads": d.heads, "linear_key_head_dim": d.key_dim,
        "linear_value_head_dim": d.value_dim, "linear_conv_kernel_dim": d.taps, "mamba_ssm_dtype": "float32",
        "rope_parameters": {"rope_type": "default", "rope_theta": s.theta, "partial_rotary_factor": 1 / ROTATED,
                            "mrope_interleaved": True, "mrope_section": [11, 11, 10]}}
    text |= {"num_experts": s.experts, "num_experts_per_tok": s.top, "moe_intermediate_size": s.mlp,
             "shared_expert_intermediate_size": s.mlp} if s.experts else {"intermediate_size": s.mlp}
    config = {"architectures": [architecture], "model_type": kind, "tie_word_embeddings": s.tied, "text_config": text}
    quantised = sorted(e.name.removesuffix(".weight") for e in hf_hybrid(s, d, layout)
                       if e.name.endswith(".weight") and e.dtype in ("U8", "F8_E4M3"))
    kept = sorted({e.name.removesuffix(".weight") for e in hf_hybrid(s, d, layout)
                   if e.name.endswith(".weight") and e.dtype == "BF16" and len(e.shape) == 2})
    if layout == "hf-nvfp4":
        codes = {e.name: "W4A16_NVFP4" if e.dtype == "U8" else "FP8" for e in hf_hybrid(s, d, layout)}
        return config | {"quantization_config": {
            "quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "ignore": kept,
            "quantized_layers": {m: {"quant_algo": codes[f"{m}.weight"]} for m in quantised}}}
    if layout == "hf-fp8":
        return config | {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": kept}}
    if layout == "hf-fp8-block":
        return config | {"quantization_config": {
            "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128],
            "modules_to_not_convert": kept}}
    return config
