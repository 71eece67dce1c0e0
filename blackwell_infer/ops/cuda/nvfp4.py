"""Launchers of ptx/nvfp4: NVFP4 activations by NVFP4 weights (W4A4), and what a block-scaled product of the library
leaves to do."""
from __future__ import annotations

import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.kernels.cost import Call, Cost, multiplied
from blackwell_infer.kernels.kernel import Kernel, Param, Variant
from blackwell_infer.ops.cuda.gemm_lt import matmul_scaled, supported_scaled
from blackwell_infer.quant.format import Quantized, Weight
from blackwell_infer.types import Array

ACTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
TILE_N = 128
TILES_M = (16, 64, 128)


def scaled(call: Call) -> Cost:
    """Sums, factors, bias and N columns of residual into N columns of y."""
    m, n, y = call.number("M"), call.number("N"), call.args["y"]
    assert isinstance(y, Tensor)
    columns = 1 if call.args["residual"] is None else 2
    return Cost(call.nbytes("sums", "factor_x", "factors_w", "bias") + columns * m * n * y.dtype.itemsize)


GEMM = Kernel("nvfp4/gemm.cu", "nvfp4_gemm", (
    Param("x", "in", "uint8"), Param("scales_x", "in", "uint8"), Param("factor_x", "in", "float32"),
    Param("w", "in", "uint8"), Param("scales_w", "in", "uint8"), Param("factors_w", "in", "float32"),
    Param("bias", "in", "float32"), Param("residual", "in"), Param("y", "out"), Param("M", "i32"), Param("N", "i32"),
    Param("K", "i32"), Param("stride", "i32"), Param("column", "i32")),
    {"ACT": tuple(ACTS.values()), "TILE_M": TILES_M}, cost=multiplied)
GEMM_16 = Kernel("nvfp4/gemm_16.ptx", "nvfp4_gemm_16", (*GEMM.params, Param("kind", "i32")), archs=("sm_120f",),
                 cost=multiplied)
SCALE_SUMS = Kernel("nvfp4/scale_sums.cu", "scale_sums", (
    Param("sums", "in", "float32"), Param("factor_x", "in", "float32"), Param("factors_w", "in", "float32"),
    Param("bias", "in", "float32"), Param("residual", "in"), Param("y", "out"), Param("M", "i32"), Param("N", "i32"),
    Param("stride", "i32"), Param("column", "i32")), {"ACT": tuple(ACTS.values())}, cost=scaled)
KERNELS = (GEMM, GEMM_16, SCALE_SUMS)

GEMMS: dict[str, dict[int, Variant]] = {
    dtype: {rows: GEMM.variant(ACT=act, TILE_M=rows) for rows in TILES_M} for dtype, act in ACTS.items()}

LIBRARY_ROWS = 65
"""Fewest rows for the library: below, a row's bits may not depend on the others (the law of `ops.api`)"""
KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}
"""What the hand-written tile calls a type of results"""


def multiply(q: Queue, x: Quantized, w: Weight, bias: Array | None, residual: Array | None, out: Tensor,
             column: int) -> None:
    """out[:, column:column + N] = x [M, K] times w [N, K] transposed, plus bias [N] and the same part of residual."""
    (m, k), n = x.shape, w.shape[0]
    if through_library(q, x, w, bias, residual, out, column):
        return
    if m <= 16 and q.arch in GEMM_16.archs:
        q.launch(GEMM_16.variant(), (-(-m // 16), -(-n // 32), 1), (128, 1, 1), *x.parts, *w.parts[:3], bias, residual,
                 out, m, n, k, out.shape[1], column, KINDS[out.dtype.name], pdl=True)
        return
    rows = tile_rows(q, m, n)
    q.launch(GEMMS[out.dtype.name][rows], (-(-m // rows), -(-n // TILE_N), 1), (256, 1, 1), *x.parts, *w.parts[:3],
             bias, residual, out, m, n, k, out.shape[1], column, smem=4 * ((rows + TILE_N) * 64 + 2048), pdl=True)


def through_library(q: Queue, x: Quantized, w: Weight, bias: Array | None, residual: Array | None, out: Tensor,
                    column: int) -> bool:
    """The same through cuBLASLt, where it has the format on this target and there are many rows; whether it did."""
    (m, k), n = x.shape, w.shape[0]
    if m < LIBRARY_ROWS or not supported_scaled(q, x.format, m, n, k):
        return False
    sums = q.empty((m, n), np.float32)
    matmul_scaled(q, x, w, sums)
    factor, factors = (x.parts[2], w.parts[2]) if x.format == "nvfp4" else (None, None)
    q.launch(SCALE_SUMS.variant(ACT=ACTS[out.dtype.name]), (-(-n // 256), min(m, 65535), 1), (256, 1, 1), sums, factor,
             factors, bias, residual, out, m, n, out.shape[1], column, pdl=True)
    return True


def tile_rows(q: Queue, m: int, n: int) -> int:
    """Rows of a tile: few for few rows, then as many as still give every multiprocessor a tile."""
    if m <= 16:
        return 16
    return 64 if -(-m // 128) * -(-n // TILE_N) < q.sm_count else 128
