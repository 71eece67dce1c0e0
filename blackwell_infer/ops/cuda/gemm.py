"""Matmuls of many rows: dense weights as they are, others dequantised block by block into the activation type.

The product is cuBLASLt's where the queue has it, else the kernels of ptx/linear (gemm.cu, gemm_f32.cu).
"""
from __future__ import annotations

import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.kernels.cost import Call, Cost, multiplied
from blackwell_infer.kernels.kernel import Kernel, Param, Variant
from blackwell_infer.ops.cuda.gemm_lt import matmul, supported
from blackwell_infer.ops.cuda.rows import dequantize
from blackwell_infer.quant.format import Weight
from blackwell_infer.types import Array

DENSE = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""Formats whose part is an array of that dtype."""

SCRATCH = 256 << 20
"""Most bytes of dequantised weights at once; a larger matrix is multiplied in blocks of rows."""
TILE = 128
STAGE_ROW_BYTES = 4 * 64
"""Shared memory of ptx/linear/gemm.cu per row of its two tiles: 4 stages of 32 elements."""


def biased(call: Call) -> Cost:
    """Sums and bias into N columns of y."""
    y = call.args["y"]
    assert isinstance(y, Tensor)
    return Cost(call.nbytes("sums", "bias") + call.number("M") * call.number("N") * y.dtype.itemsize)


GEMM = Kernel("linear/gemm.cu", "gemm", (
    Param("x", "in"), Param("w", "in"), Param("bias", "in", "float32"), Param("y", "out"), Param("M", "i32"),
    Param("N", "i32"), Param("K", "i32"), Param("stride", "i32"), Param("column", "i32"), Param("wide", "i32")),
    {"ACT": ("f16", "bf16"), "TILE_M": (64, 128)}, cost=multiplied)
GEMM_F32 = Kernel("linear/gemm_f32.cu", "gemm_f32", (
    Param("x", "in", "float32"), Param("w", "in", "float32"), Param("bias", "in", "float32"),
    Param("y", "out", "float32"), Param("M", "i32"), Param("N", "i32"), Param("K", "i32"), Param("stride", "i32"),
    Param("column", "i32")), cost=multiplied)
ADD_BIAS = Kernel("linear/add_bias.cu", "add_bias", (
    Param("sums", "in", "float32"), Param("bias", "in", "float32"), Param("y", "out"), Param("M", "i32"),
    Param("N", "i32"), Param("stride", "i32"), Param("column", "i32")), {"ACT": ("f32", "f16", "bf16")},
    cost=biased)
KERNELS = (GEMM, GEMM_F32, ADD_BIAS)

TILES: dict[str, dict[int, Variant]] = {
    "float16": {64: GEMM.variant(ACT="f16", TILE_M=64), 128: GEMM.variant(ACT="f16", TILE_M=128)},
    "bfloat16": {64: GEMM.variant(ACT="bf16", TILE_M=64), 128: GEMM.variant(ACT="bf16", TILE_M=128)}}
BIASES = {"float32": ADD_BIAS.variant(ACT="f32"), "float16": ADD_BIAS.variant(ACT="f16"),
          "bfloat16": ADD_BIAS.variant(ACT="bf16")}


def large(q: Queue, x: Array, w: Weight, bias: Array | None, out: Tensor, column: int) -> None:
    """out[:, column:column + N] = x [M, K] times w [N, K] transposed, plus bias [N]; rows of K fill 16-byte units or x
    is float32."""
    n, k = w.shape
    if DENSE.get(w.format) == x.dtype.name:
        product(q, x, w.parts[0], bias, out, column)
        return
    row = k * x.dtype.itemsize
    block = min(n, max(SCRATCH // row // TILE, 1) * TILE)
    for first in range(0, n, block):
        count = min(block, n - first)
        dense = q.empty((count, k), x.dtype)
        dequantize(q, w, first, dense)
        part = None if bias is None else bias[first:first + count]
        product(q, x, dense, part, out, column + first)
        del dense  # its memory serves the next block


def product(q: Queue, x: Array, w: Array, bias: Array | None, out: Tensor, column: int) -> None:
    """The same for a dense w of x's type."""
    (m, k), n, stride = x.shape, w.shape[0], out.shape[1]
    if "cublaslt" in q.libraries and supported(m, n, k, x.dtype) and aligned(x) and aligned(w):
        if bias is None:
            matmul(q, x, w, out, column=column)
            return
        sums = q.empty((m, n), np.float32)
        matmul(q, x, w, sums)
        q.launch(BIASES[out.dtype.name], (-(-n // 256), min(m, 65535), 1), (256, 1, 1), sums, bias, out, m, n, stride,
                 column, pdl=True)
        return
    tiles = -(-m // TILE) * -(-n // TILE)
    if x.dtype == np.float32:
        q.launch(GEMM_F32.variant(), (-(-m // TILE), -(-n // TILE), 1), (256, 1, 1), x, w, bias, out, m, n, k, stride,
                 column, pdl=True)
        return
    rows = 64 if tiles < q.sm_count else 128
    q.launch(TILES[x.dtype.name][rows], (-(-m // rows), -(-n // TILE), 1), (256, 1, 1), x, w, bias, out, m, n, k,
             stride, column, int(out.dtype == np.float32), smem=(rows + TILE) * STAGE_ROW_BYTES, pdl=True)


def aligned(a: Array) -> bool:
    """Whether an array starts on a 16-byte boundary."""
    return isinstance(a, Tensor) and a.ptr % 16 == 0
