"""Embedding and matmuls. Few rows go through one kernel per format with one order of additions (ptx/linear/small_*.cu),
so a row's bits do not depend on the rows beside it; many rows go through a GEMM (gemm.py), unless they too shall have
the bits of few. Weights in fragment order have kernels of their own for few rows (small.py) and more (medium.py)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import multiplied
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.ops.cuda import arrange, medium, small
from blackwell_infer.ops.cuda import staged as stage
from blackwell_infer.ops.cuda.gemm import KERNELS as GEMM_KERNELS
from blackwell_infer.ops.cuda.gemm import large
from blackwell_infer.ops.cuda.parts import WEIGHT, pointers
from blackwell_infer.ops.cuda.quantized import quantise_and_multiply
from blackwell_infer.ops.cuda.rows import FORMATS, WEIGHT_ROWS, choose, embed
from blackwell_infer.ops.cuda.small import Part
from blackwell_infer.ops.cuda.staged import FEW_ROWS, plain, staged
from blackwell_infer.quant.format import QUANTISES, Linear, Weight
from blackwell_infer.types import Array

__all__ = ["KERNELS", "embed", "linear", "logits"]

SMALL_ROWS = 64
"""Most activation rows of the small kernels, which read the weights once per 16 rows, three times from the L2 cache."""
MANY_ROWS = 1 << 31
"""No limit at all"""
TILE = 16
RING = {"f32": 2 * 272, "f16": 2 * 320, "bf16": 2 * 320, "q8_0": 2 * 288, "q4_0": 3 * 160, "q4_k": 3 * 160,
        "q5_k": 3 * 176, "q6_k": 3 * 224, "nvfp4": 3 * 176, "nvfp4_f16": 3 * 208, "mxfp4": 3 * 176, "mxfp8": 2 * 304,
        "fp8": 2 * 272, "fp8_block": 2 * 304}
"""Bytes of shared memory per weight row and warp: STAGES x STRIDE of ptx/include/blocks.cuh and scaled.cuh."""

_COMMON = (Param("x", "in"), *WEIGHT, Param("bias", "in", "float32"), Param("y", "out"), Param("M", "i32"),
           Param("N", "i32"), Param("K", "i32"), Param("stride", "i32"), Param("column", "i32"), Param("wide", "i32"))
SMALL_MMA = Kernel("linear/small_mma.cu", "linear_small_mma", _COMMON, {"FORMAT": FORMATS, "ACT": ("f16", "bf16")},
                   cost=multiplied)
SMALL_FMA = Kernel("linear/small_fma.cu", "linear_small_fma", _COMMON, {"FORMAT": FORMATS, "ACT": ("f32",)},
                   cost=multiplied)
KERNELS = (SMALL_MMA, SMALL_FMA, WEIGHT_ROWS, *GEMM_KERNELS, *arrange.KERNELS, *stage.KERNELS, *small.KERNELS,
           *medium.KERNELS)

SMALL = {
    **{(form, "float32"): SMALL_FMA.variant(FORMAT=form, ACT="f32") for form in FORMATS},
    **{(form, "float16"): SMALL_MMA.variant(FORMAT=form, ACT="f16") for form in FORMATS},
    **{(form, "bfloat16"): SMALL_MMA.variant(FORMAT=form, ACT="bf16") for form in FORMATS}}


def linear(q: Queue, x: Array, w: Linear, bias: Array | None = None, reproducible: bool = False) -> Array:
    """x [T, K] times each row block of w transposed, side by side, plus bias -> [T, sum of rows] of x's dtype."""
    return outputs(q, "linear", x, w, bias, x.dtype, reproducible)


def logits(q: Queue, x: Array, w: Linear, reproducible: bool = False) -> Array:
    """Like `linear` without bias, not rounded: float32 [N, V]."""
    return outputs(q, "logits", x, w, None, np.dtype(np.float32), reproducible)


def outputs(q: Queue, op: str, x: Array, w: Linear, bias: Array | None, dtype: np.dtype[Any],
            reproducible: bool) -> Array:
    """All row blocks of w into one array of `dtype`; `reproducible`: any number of rows through the kernels for few.
    KernelError: no kernel for a format or type, or K differs."""
    (m, k), total = x.shape, sum(block.shape[0] for block in w)
    out = q.empty((m, total), dtype)
    most = MANY_ROWS if reproducible else SMALL_ROWS
    if m and any(small.takes(block, x.dtype) if m <= FEW_ROWS else between(q, x, block, most) for block in w):
        x = staged(q, x)
    parts, column = [], 0
    for block in w:
        n = block.shape[0]
        if block.shape[1] != k:
            raise KernelError(f"{op}: x has rows of {k} elements, a {block.format} weight has rows of {block.shape[1]}")
        if m and n:
            parts.append(Part(block, None if bias is None else bias[column:column + n], column))
        column += n
    for launch in launches(parts, x.dtype):
        multiply(q, op, x, launch, out, most)
    return out


def launches(parts: Sequence[Part], dtype: np.dtype[Any]) -> list[tuple[Part, ...]]:
    """Parts, and pairs of them that the kernels for few rows take at once: it depends on weights alone."""
    found: list[tuple[Part, ...]] = []
    for part in parts:
        before = found[-1] if found else ()
        if len(before) == 1 and small.takes(part.w, dtype) and small.takes(before[0].w, dtype) and small.companions(
                before[0].w, part.w):
            found[-1] = (*before, part)
        else:
            found.append((part,))
    return found


def between(q: Queue, x: Array, w: Weight, most: int) -> bool:
    """Whether x goes through medium.py, whose bits are not those of the kernels for few."""
    return most < MANY_ROWS and medium.takes(w, x.dtype, x.shape[0], q.arch)


def multiply(q: Queue, op: str, x: Array, parts: tuple[Part, ...], out: Tensor, most: int) -> None:
    """One row block, or two, into their columns of `out`: up to `most` rows through the kernels for few. The GEMM of
    16-bit operands needs rows of a multiple of 16 bytes."""
    (m, k), few = x.shape, small.takes(parts[0].w, x.dtype)
    wide = few and m > most and k % 8 == 0
    if len(parts) == 2 and (wide or any(between(q, x, part.w, most) for part in parts)):
        for part in parts:
            multiply(q, op, x, (part,), out, most)
        return
    w, bias, column = parts[0].w, parts[0].bias, parts[0].column
    if w.format in QUANTISES:
        quantise_and_multiply(q, x, w, bias, out, column)
    elif between(q, x, w, most):
        medium.multiply(q, staged(q, x), w, bias, out, column)
    elif wide:
        large(q, plain(x), w, bias, out, column)
    elif few:
        for first in range(0, m, FEW_ROWS):
            some = staged(q, x if m <= FEW_ROWS else x[first:first + FEW_ROWS])
            small.multiply(q, some, parts, out[first:first + FEW_ROWS])
    else:
        as_stored(q, op, x, parts[0], out, most)


def as_stored(q: Queue, op: str, x: Array, part: Part, out: Tensor, most: int) -> None:
    """A row block that is in no order of fragments."""
    (m, k), n, w = x.shape, part.n, part.w
    v = choose(q, op, SMALL, w.format, x.dtype)
    if m > most and (x.dtype == np.float32 or k % 8 == 0):
        large(q, plain(x), w, part.bias, out, part.column)
        return
    blocks = -(-m // TILE) * -(-n // TILE)
    q.launch(v, (blocks, 1, 1), (256, 1, 1), plain(x), *pointers(w), part.bias, out, m, n, k, out.shape[1], part.column,
             int(out.dtype == np.float32), smem=8 * TILE * RING[w.format], pdl=True)
