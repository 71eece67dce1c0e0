"""The op table in NumPy: the specification that every other implementation is compared with, and the CPU backend.

The module itself satisfies `ops.api.Ops`; the last lines let the type checker prove it.
"""
from typing import TYPE_CHECKING

from blackwell_infer.ops.ref.activation import add_gated, sigmoid_gate, swiglu, take_rows
from blackwell_infer.ops.ref.attention import attend, attention_
from blackwell_infer.ops.ref.experts import experts
from blackwell_infer.ops.ref.linear import arrange, embed, linear, logits
from blackwell_infer.ops.ref.norm import add_rms_norm, rms_norm, rms_norm_pair
from blackwell_infer.ops.ref.quantize import (
    add_rms_norm_quantize,
    linear_quantized,
    quantize,
    rms_norm_quantize,
    swiglu_quantize,
)
from blackwell_infer.ops.ref.recurrent import gated_delta_
from blackwell_infer.ops.ref.rope import qkv_rope_append_
from blackwell_infer.ops.ref.route import route
from blackwell_infer.ops.ref.sample import deliver_, newest_tokens, penalty_load_, sample_, token_logprobs

__all__ = [
    "add_gated", "add_rms_norm", "add_rms_norm_quantize", "arrange", "attend", "attention_", "deliver_", "embed",
    "experts", "gated_delta_", "linear", "linear_quantized", "logits", "newest_tokens", "penalty_load_",
    "qkv_rope_append_", "quantize", "rms_norm", "rms_norm_pair", "rms_norm_quantize", "route", "sample_",
    "sigmoid_gate", "swiglu", "swiglu_quantize", "take_rows", "token_logprobs",
]

if TYPE_CHECKING:
    from blackwell_infer.ops import ref
    from blackwell_infer.ops.api import Ops

    REFERENCE: Ops = ref
