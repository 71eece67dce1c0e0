"""Launcher of ptx/linear/medium.cu: matmuls of some tens of activation rows over weights in fragment order."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.device.check import SHARED_LIMIT
from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.kernels.cost import Call, Cost
from blackwell_infer.kernels.kernel import Kernel, Param, Value
from blackwell_infer.ops.cuda.staged import ACT, FEW_ROWS, GROUP, MOST_ROWS, Staged, block_bytes
from blackwell_infer.quant.format import Weight
from blackwell_infer.quant.fragments import FRAGMENTS, SUFFIX
from blackwell_infer.quant.lanes import COLS, ROWS
from blackwell_infer.types import Array

WARPS, MOST_STAGES = 8, 8
STATIC = 2 << 10
"""Bytes of shared memory that the kernel takes besides, and that a multiprocessor keeps for each CTA"""
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
FORMATS = ("q4_k", "q5_k", "q6_k", "nvfp4", "fp8")
"""Those whose codes times scales float16 holds (SHRINK of ptx/include/fragments.cuh). Those of Q6_K lose a bit of 12:
1.2e-4 of a weight at most, where whole weights would be rounded to the type of activations otherwise."""
MANY = 512
"""Units of 256 weight rows and 256 columns in a matrix from which they are so large, else half as large: fewer would
leave multiprocessors idle, smaller ones read activations twice as often"""


class Tiling(msgspec.Struct, frozen=True):
    """Tiles of 16 weight rows of each warp, and activation rows at once. `tiles` follows from matrix and GPU alone: it
    fixes the order of additions."""

    tiles: int
    xrows: int

    @property
    def rows(self) -> int:
        return ROWS * WARPS * self.tiles

    def unit_bytes(self, form: str) -> int:
        """Shared memory of the weights and activations of 256 columns."""
        return WARPS * self.tiles * FRAGMENTS[form].tile_bytes + self.xrows // GROUP * block_bytes(GROUP)


def sums_cost(call: Call) -> Cost:
    """float32 sums into N columns of y."""
    y = call.args["y"]
    assert isinstance(y, Tensor)
    return Cost(call.nbytes("bias") + call.number("M") * call.number("N") * (4 + y.dtype.itemsize))


def product_cost(call: Call) -> Cost:
    """Weights and activations once, and float32 sums."""
    m, n = call.number("M"), call.number("N")
    return Cost(call.nbytes("staged", "w") + 4 * m * n, 2 * m * n * COLS * call.number("tiles"))


def wide(defines: Mapping[str, Value]) -> bool:
    """Whether a CTA needs more shared memory than every GPU has."""
    return (defines["TILES"], defines["XROWS"]) != (1, GROUP)


PARAMS = (Param("staged", "in", "uint8"), Param("w", "in", "uint8"), Param("bias", "in", "float32"), Param("y", "out"),
          Param("parts", "out", "float32"), *(Param(name, "i32") for name in (
              "M", "N", "tiles", "per", "stages", "stride", "column", "y_type")))
MEDIUM = Kernel("linear/medium.cu", "linear_medium", PARAMS,
                {"FORMAT": FORMATS, "TILES": (1,), "XROWS": (GROUP,)}, cost=product_cost)
WIDE = Kernel("linear/medium.cu", "linear_medium", PARAMS,
              {"FORMAT": FORMATS, "TILES": (1, 2), "XROWS": (GROUP, 2 * GROUP)},
              wide, ("sm_90a", "sm_100f"), product_cost)
"""for GPUs whose shared memory holds two of its units"""
SUMS = Kernel("linear/medium_sums.cu", "linear_medium_sums", (
    Param("x", "in"), Param("staged", "in", "uint8"), Param("w", "in", "uint8"), Param("bias", "in", "float32"),
    Param("parts", "in", "float32"), Param("y", "inout"), *(Param(name, "i32") for name in (
        "M", "N", "K", "tiles", "per", "rows_log", "stride", "column", "x_type", "y_type"))),
    {"FORMAT": FORMATS}, cost=sums_cost)
KERNELS = (MEDIUM, WIDE, SUMS)


def multiply(q: Queue, x: Staged, w: Weight, bias: Array | None, out: Tensor, column: int) -> None:
    """x [M, K] times w [N, K] in fragment order, transposed, plus bias [N], into columns of `out`."""
    (m, k), n, blocks = x.shape, w.shape[0], -(-w.shape[1] // COLS)
    form, shared = w.format.removesuffix(SUFFIX), SHARED_LIMIT[q.arch] - STATIC
    tiling = choose(form, m, n, k, shared)
    units = -(-n // tiling.rows) * blocks
    per = -(-units // q.sm_count)
    ctas = -(-units // per)
    stages = min(MOST_STAGES, per, shared // tiling.unit_bytes(form))
    parts = q.empty((2 * ctas, m, tiling.rows), np.float32)
    defines: dict[str, Value] = {"FORMAT": form, "TILES": tiling.tiles, "XROWS": tiling.xrows}
    kernel = WIDE if wide(defines) else MEDIUM
    q.launch(kernel.variant(**defines), (ctas, -(-m // tiling.xrows), 1), (32 * WARPS, 1, 1), x.blocks,
             w.parts[0], bias, out, parts, m, n, blocks, per, stages, out.shape[1], column, TYPES[out.dtype.name],
             smem=stages * tiling.unit_bytes(form), pdl=True)
    q.launch(SUMS.variant(FORMAT=form), (-(-n // 1024), m, 1), (256, 1, 1), x.rows, x.blocks, w.parts[0], bias, parts,
             out, m, n, k, blocks, per, tiling.rows.bit_length() - 1, out.shape[1], column, TYPES[x.dtype.name],
             TYPES[out.dtype.name], pdl=True)


def takes(w: Weight, dtype: np.dtype[Any], m: int, arch: str) -> bool:
    """Whether `multiply` takes m rows of `dtype` with this weight, and one unit can arrive beside the one in use."""
    form = w.format.removesuffix(SUFFIX)
    return (w.format.endswith(SUFFIX) and dtype.name in ACT and form in FORMATS and FEW_ROWS < m <= MOST_ROWS
            and 2 * Tiling(1, GROUP).unit_bytes(form) <= SHARED_LIMIT[arch] - STATIC)


def choose(form: str, m: int, n: int, k: int, shared: int) -> Tiling:
    """For m rows and a matrix [n, k]: shared memory of a CTA must hold two units."""
    large = 2 * Tiling(2, 2 * GROUP).unit_bytes(form) <= shared
    many = -(-n // (2 * ROWS * WARPS)) * -(-k // COLS) >= MANY
    return Tiling(2 if large and many else 1, 2 * GROUP if large and m > GROUP else GROUP)
