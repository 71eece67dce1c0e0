"""Ops that hand activations on in the form that the next projection takes.

Where its weights meet quantised activations (`quant.tiled`), and it is one row block, norms and the gate quantise what
they make, in one kernel and to the same bits as `ops.linear` would by itself. Everywhere else these are the plain ops.
"""
from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from blackwell_infer.ops.api import Ops
from blackwell_infer.quant.format import PAIRED, Linear, Quantized, input_scale
from blackwell_infer.types import Array

FORMS: Mapping[str, str] = MappingProxyType({PAIRED[form]: form for form in ("nvfp4", "mxfp8", "fp8_block")})
"""What the fused quantisers can make, by the format of the weights that take it"""


def form_of(w: Linear) -> str:
    """The format in which w takes activations from a fused op, "" for their own type."""
    return FORMS.get(w[0].format, "") if len(w) == 1 else ""


def rms_norm(ops: Ops, x: Array, weight: Array, eps: float, w: Linear) -> Array | Quantized:
    """`ops.rms_norm` for the projection w."""
    form = form_of(w)
    return ops.rms_norm_quantize(x, weight, eps, form, input_scale(w[0])) if form else ops.rms_norm(x, weight, eps)


def add_rms_norm(ops: Ops, x: Array, residual: Array, weight: Array, eps: float,
                 w: Linear) -> tuple[Array, Array | Quantized]:
    """`ops.add_rms_norm` for the projection w."""
    form = form_of(w)
    if form:
        return ops.add_rms_norm_quantize(x, residual, weight, eps, form, input_scale(w[0]))
    return ops.add_rms_norm(x, residual, weight, eps)


def swiglu(ops: Ops, gate_up: Array, w: Linear) -> Array | Quantized:
    """`ops.swiglu` for the projection w."""
    form = form_of(w)
    return ops.swiglu_quantize(gate_up, form, input_scale(w[0])) if form else ops.swiglu(gate_up)


def linear(ops: Ops, x: Array | Quantized, w: Linear, bias: Array | None, dtype: str) -> Array:
    """`ops.linear` of what one of the above made for w; `dtype` is that of activations."""
    return ops.linear_quantized(x, w, dtype, bias) if isinstance(x, Quantized) else ops.linear(x, w, bias)
