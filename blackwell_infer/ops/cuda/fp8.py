"""Launchers of ptx/fp8: E4M3 activations by E4M3 weights (W8A8) under MX scales, factors or block scales."""
from __future__ import annotations

from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.kernels.cost import multiplied
from blackwell_infer.kernels.kernel import Kernel, Param, Variant
from blackwell_infer.ops.cuda.nvfp4 import TILE_N, TILES_M, through_library, tile_rows
from blackwell_infer.quant.format import Quantized, Weight
from blackwell_infer.types import Array

ACTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
FORMS = ("mxfp8", "fp8", "fp8_block")

GEMM = Kernel("fp8/gemm.cu", "fp8_gemm", (
    Param("x", "in", "uint8"), Param("scales_x", "in"), Param("w", "in", "uint8"), Param("scales_w", "in"),
    Param("bias", "in", "float32"), Param("residual", "in"), Param("y", "out"), Param("M", "i32"), Param("N", "i32"),
    Param("K", "i32"), Param("stride", "i32"), Param("column", "i32")),
    {"ACT": tuple(ACTS.values()), "FORM": FORMS, "TILE_M": TILES_M}, cost=multiplied)
KERNELS = (GEMM,)

GEMMS: dict[tuple[str, str], dict[int, Variant]] = {
    (form, dtype): {rows: GEMM.variant(ACT=act, FORM=form, TILE_M=rows) for rows in TILES_M}
    for form in FORMS for dtype, act in ACTS.items()}


def multiply(q: Queue, x: Quantized, w: Weight, bias: Array | None, residual: Array | None, out: Tensor,
             column: int) -> None:
    """out[:, column:column + N] = x [M, K] times w [N, K] transposed, plus bias [N] and the same part of residual."""
    if x.format == "mxfp8" and through_library(q, x, w, bias, residual, out, column):
        return
    (m, k), n = x.shape, w.shape[0]
    rows = tile_rows(q, m, n)
    q.launch(GEMMS[x.format, out.dtype.name][rows], (-(-m // rows), -(-n // TILE_N), 1), (256, 1, 1), *x.parts,
             *w.parts[:2], bias, residual, out, m, n, k, out.shape[1], column, smem=4 * ((rows + TILE_N) * 64 + 1024),
             pdl=True)
