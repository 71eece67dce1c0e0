"""Matmuls of many rows: dense weights as they are, others dequantised block by block into the activation type.

The product is cuBLASLt's where the queue has it, else the kernels of ptx/linear (gemm.cu, gemm_f32.cu).
"""
from __future__ import annotations

import numpy as np

from blackwell_infer.device.arena import Lease
from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
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

GEMM = Kernel("linear/gemm.cu", "gemm", (
    Param("x", "in"), Param("w", "in"), Param("bias", "in", "float32"), Param("y", "out"), Param("M", "i32"),
    Param("N", "i32"), Param("K", "i32"), Param("stride", "i32"), Param("column", "i32"), Param("wide", "i32")),
    {"ACT": ("f16", "bf16"), "TILE_M": (64, 128)})
GEMM_F32 = Kernel("linear/gemm_f32.cu", "gemm_f32", (
    Param("x", "in", "float32"), Param("w", "in", "float32"), Param("bias", "in", "float32"),
    Param("y", "out", "float32"), Param("M", "i32"), Param("N", "i32"), Param("K", "i32"), Param("stride", "i32"),
    Param("column", "i32")))
ADD_BIAS = Kernel("linear/add_bias.cu", "add_bias", (
    Param("sums", "in", "float32"), Param("bias", "in", "float32"), Param("y", "out"), Param("M", "i32"),
    Param("N", "i32"), Param("stride", "i32"), Param("column", "i32")), {"ACT": ("f32", "f16", "bf16")})
KERNELS = (GEMM, GEMM_F32, ADD_BIAS)

TILES: dict[str, dict[int, Variant]] = {
    "float16": {64: GEMM.variant(ACT="f16", TILE_M=64), 128: GEMM.variant(ACT="f16", TILE_M=128)},
    "bfloat16": {64: GEMM.variant(ACT="bf16", TILE_M=64), 128: GEMM.variant(ACT="bf16", TILE_M=128)}}
BIASES = {"float32": ADD_BIAS.variant(ACT="f32"), "float16": ADD_BIAS.variant(ACT="f16"),
          "bfloat16": ADD_BIAS.variant(ACT="bf16")}


class Scratch:
    """Temporary memory that the large matmuls of one step share; owned by a queue.

    Sharing is safe because everything on a queue runs in order. The arena of a step hands out addresses and takes none
    back, so without it a step would hold every weight of the model dequantised at once.
    """

    def __init__(self) -> None:
        self._held: Tensor | None = None

    def take(self, q: Queue, step: Tensor, nbytes: int) -> Tensor:
        """`nbytes` bytes, uint8, good until the next `take`. `step` is any tensor made in the present step."""
        held = self._held
        if held is None or held.size < nbytes or not same_step(held, step):
            held = q.empty((nbytes,), np.uint8)
            self._held = held if isinstance(held.base, Lease) else None
        return held[:nbytes]

    def close(self) -> None:
        self._held = None


class Sums(Scratch):
    """The same for float32 sums that still want their bias."""


def same_step(a: Tensor, b: Tensor) -> bool:
    """Whether both are memory of one step's arena."""
    return isinstance(a.base, Lease) and isinstance(b.base, Lease) and a.base.step == b.base.step


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
        held = q.owned(Scratch).take(q, out, count * row)
        dense = Tensor(held.ptr, (count, k), x.dtype, held.base)
        dequantize(q, w, first, dense)
        part = None if bias is None else bias[first:first + count]
        product(q, x, dense, part, out, column + first)


def product(q: Queue, x: Array, w: Array, bias: Array | None, out: Tensor, column: int) -> None:
    """The same for a dense w of x's type."""
    (m, k), n, stride = x.shape, w.shape[0], out.shape[1]
    if "cublaslt" in q.libraries and supported(m, n, k, x.dtype) and aligned(x) and aligned(w):
        if bias is None:
            matmul(q, x, w, out, column=column)
            return
        held = q.owned(Sums).take(q, out, 4 * m * n)
        sums = Tensor(held.ptr, (m, n), np.dtype(np.float32), held.base)
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
