"""Launchers of ptx/quantize: activations in small codes under scales, alone and fused into norms and the gate."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import moved
from blackwell_infer.kernels.kernel import Kernel, Param, Variant
from blackwell_infer.ops.cuda.norm import geometry
from blackwell_infer.ops.cuda.staged import plain
from blackwell_infer.quant.format import Quantized
from blackwell_infer.quant.tiled import tiled_size
from blackwell_infer.types import Array

GROUPS = "quantize/groups.cu"
ACTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
FORMS = ("nvfp4", "mxfp8", "fp8_block")
MULTIPLES = {"nvfp4": 64, "mxfp8": 32, "fp8": 1, "fp8_block": 1}
"""What the length of a row must be a multiple of"""
DEFINES = {"ACT": tuple(ACTS.values()), "QUANT": FORMS}

_X, _INPUTS, _WEIGHT = Param("x", "in"), Param("inputs", "in", "float32"), Param("weight", "in", "float32")
_OUT = (Param("codes", "out", "uint8"), Param("scales", "out"), Param("factor", "out", "float32"), Param("T", "i32"),
        Param("K", "i32"))
_EPS = Param("eps", "f32")
QUANTIZE = Kernel(GROUPS, "quantize", (_X, _INPUTS, *_OUT), DEFINES, cost=moved)
SWIGLU = Kernel(GROUPS, "swiglu_quantize", (_X, _INPUTS, *_OUT), DEFINES, cost=moved)
NORM = Kernel(GROUPS, "rms_norm_quantize", (_X, _WEIGHT, _INPUTS, *_OUT, _EPS), DEFINES, cost=moved)
ADD_NORM = Kernel(GROUPS, "add_rms_norm_quantize", (
    _X, Param("residual", "in"), _WEIGHT, _INPUTS, Param("s", "out"), *_OUT, _EPS), DEFINES,
    cost=moved)
TOKENS = Kernel("quantize/tokens.cu", "quantize_tokens", (
    _X, _INPUTS, Param("codes", "out", "uint8"), Param("factors", "out", "float32"), Param("T", "i32"),
    Param("K", "i32")), {"ACT": tuple(ACTS.values())}, cost=moved)
KERNELS = (QUANTIZE, SWIGLU, NORM, ADD_NORM, TOKENS)

Table = Mapping[tuple[str, str], Variant]


def table(kernel: Kernel) -> Table:
    """The kernel by form and activation type."""
    return {(form, dtype): kernel.variant(ACT=act, QUANT=form) for form in FORMS for dtype, act in ACTS.items()}


QUANTIZES: Table = {**table(QUANTIZE), **{("fp8", dtype): TOKENS.variant(ACT=act) for dtype, act in ACTS.items()}}
SWIGLUS, NORMS, ADD_NORMS = table(SWIGLU), table(NORM), table(ADD_NORM)


def quantize(q: Queue, x: Array, form: str, inputs: Array | None = None) -> Quantized:
    tokens, cols = x.shape
    v = choose(q, "quantize", QUANTIZES, form, x, cols)
    if form == "fp8":
        codes, factors = q.empty((tokens, cols), np.uint8), q.empty((tokens,), np.float32)
        if tokens:
            q.launch(v, (tokens, 1, 1), (256, 1, 1), plain(x), inputs, codes, factors, tokens, cols, pdl=True)
        return Quantized(form, (tokens, cols), (codes, factors))
    out = empty(q, form, tokens, cols)
    if tokens:
        grid = (rows_of(form, tokens), -(-cols // 1024), 1)
        q.launch(v, grid, (128, 1, 1), plain(x), inputs, *arguments(out), pdl=True)
    return out


def swiglu_quantize(q: Queue, gate_up: Array, form: str, inputs: Array | None = None) -> Quantized:
    tokens, cols = gate_up.shape[0], gate_up.shape[1] // 2
    v = choose(q, "swiglu_quantize", SWIGLUS, form, gate_up, cols)
    out = empty(q, form, tokens, cols)
    if tokens:
        grid = (rows_of(form, tokens), -(-cols // 1024), 1)
        q.launch(v, grid, (128, 1, 1), gate_up, inputs, *arguments(out), pdl=True)
    return out


def rms_norm_quantize(q: Queue, x: Array, weight: Array, eps: float, form: str,
                      inputs: Array | None = None) -> Quantized:
    tokens, cols = x.shape
    v = choose(q, "rms_norm_quantize", NORMS, form, x, cols)
    out = empty(q, form, tokens, cols)
    if tokens:
        grid, block = geometry(rows_of(form, tokens), cols)
        q.launch(v, grid, block, x, weight, inputs, *arguments(out), eps, pdl=True)
    return out


def add_rms_norm_quantize(q: Queue, x: Array, residual: Array, weight: Array, eps: float, form: str,
                          inputs: Array | None = None) -> tuple[Array, Quantized]:
    tokens, cols = x.shape
    v = choose(q, "add_rms_norm_quantize", ADD_NORMS, form, x, cols)
    s, out = q.empty((tokens, cols), x.dtype), empty(q, form, tokens, cols)
    if tokens:
        grid, block = geometry(rows_of(form, tokens), cols)
        q.launch(v, grid, block, x, residual, weight, inputs, s, *arguments(out), eps, pdl=True)
    return s, out


def choose(q: Queue, op: str, variants: Table, form: str, x: Array, cols: int) -> Variant:
    """The variant for a form and x's type. KernelError names what exists, or the K that does not fit."""
    v = variants.get((form, x.dtype.name))
    if v is None:
        forms, dtypes = (sorted({key[i] for key in variants}) for i in (0, 1))
        raise KernelError(f"{op}: no kernel from {x.dtype.name} to {form} on {q.arch}; there are kernels from "
                          f"{', '.join(dtypes)} to {', '.join(forms)}")
    if cols % MULTIPLES[form]:
        raise KernelError(f"{op}: rows of {cols} elements are no multiple of {MULTIPLES[form]}, which {form} needs")
    return v


def rows_of(form: str, tokens: int) -> int:
    """Rows that a kernel writes: those that fill up the last tile of scales, too."""
    return tokens if form == "fp8_block" else -(-tokens // 128) * 128


def empty(q: Queue, form: str, tokens: int, cols: int) -> Quantized:
    """Memory for the result of a group quantiser."""
    codes = q.empty((tokens, cols // 2 if form == "nvfp4" else cols), np.uint8)
    if form == "fp8_block":
        return Quantized(form, (tokens, cols), (codes, q.empty((tokens, -(-cols // 128)), np.float32)))
    scales = q.empty((tiled_size(tokens, cols // (16 if form == "nvfp4" else 32)),), np.uint8)
    factor = (q.empty((1,), np.float32),) if form == "nvfp4" else ()
    return Quantized(form, (tokens, cols), (codes, scales, *factor))


def arguments(out: Quantized) -> tuple[Array | int | None, ...]:
    """The arguments `_OUT` of a kernel."""
    codes, scales, *factor = out.parts
    parts = (codes, scales, factor[0] if factor else None)
    return (*parts, *out.shape)
