"""Launcher of ptx/linear/small.cu: matmuls of up to 16 activation rows over weights in fragment order, and over dense
16-bit weights as they are."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.device.check import SHARED_LIMIT
from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.kernels import tuned
from blackwell_infer.kernels.cost import multiplied
from blackwell_infer.kernels.kernel import Kernel, Param, Value
from blackwell_infer.ops.cuda.gemm import aligned
from blackwell_infer.ops.cuda.staged import ACT, Staged, block_bytes, staged
from blackwell_infer.quant.format import Weight
from blackwell_infer.quant.fragments import FRAGMENTS, SUFFIX
from blackwell_infer.quant.lanes import COLS, ROWS
from blackwell_infer.types import Array

SUMS = 640
"""Bytes of a warp's sums of 16 weight rows and 8 activation rows"""
BLOCKS_BUDGET, MOST_BLOCKS = 12288, 16
"""Bytes, and number, of staged blocks that a warp keeps in shared memory"""
STATIC = 3 << 10
"""Bytes of shared memory that the kernel takes besides, and that a multiprocessor keeps for each CTA"""
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
NARROW, LONG, LIGHT = 4608, 8192, 4096
"""Most rows of a matrix whose columns 16 warps share, so that each has little to do once activations are there, and
most columns: beyond, 8 warps read enough to hide that. Most bytes of a tile: of larger ones not every GPU holds 16."""


DENSE, DENSE_TILE = ("f16", "bf16"), 16 * 544
"""Formats that are read as they are stored, and bytes of a tile in shared memory (ptx/include/fragments_dense.cuh)"""


class Geometry(msgspec.Struct, frozen=True):
    """Warps of a CTA, and how many of them share a row's columns. Follows from the matrix alone: it fixes the order of
    additions, which no batch size may change."""

    warps: int
    split: int


class Tiling(msgspec.Struct, frozen=True):
    """Tiles of 16 rows that a warp reads at once, how many times over it reads ahead, and CTAs to a multiprocessor."""

    tiles: int
    ahead: int
    ctas: int


GEOMETRIES = (Geometry(16, 16), Geometry(8, 8), Geometry(8, 4), Geometry(8, 2))
XROWS: Mapping[int, tuple[int, ...]] = {16: (1, 4, 8), 8: (1, 4, 8, 16)}
"""Activation rows of a launch, by warps of a CTA"""
BOUNDS: Mapping[tuple[int, int], int] = {(1, 1): 16, (1, 2): 16, (4, 1): 16, (4, 2): 8, (8, 1): 16, (8, 2): 8,
                                         (16, 1): 8}
"""Most warps of the kernel for (activation rows, tiles): more would leave too few registers. One kernel serves as many
matrices as it can: kernels of a step that do not fit into the instruction cache together are fetched anew each time."""
TILINGS: Mapping[tuple[int, int], tuple[Tiling, ...]] = {
    (16, 1): (Tiling(2, 1, 1), Tiling(1, 1, 1)), (16, 4): (Tiling(1, 1, 1),), (16, 8): (Tiling(1, 1, 1),),
    (8, 1): (Tiling(2, 2, 2), Tiling(2, 2, 1), Tiling(1, 2, 2), Tiling(1, 1, 2), Tiling(1, 1, 1)),
    (8, 4): (Tiling(2, 2, 1), Tiling(1, 1, 1)),
    (8, 8): (Tiling(2, 2, 1), Tiling(1, 1, 1)), (8, 16): (Tiling(1, 2, 1), Tiling(1, 1, 1))}
"""What there is for (warps, activation rows), the best first: later ones keep more multiprocessors busy, or fit where
shared memory is small. H200, 2026-11-24."""


def legal(defines: Mapping[str, Value]) -> bool:
    return BOUNDS.get((int(defines["XROWS"]), int(defines["TILES"]))) == defines["WARPS"]


SMALL = Kernel("linear/small.cu", "linear_small", (
    Param("x", "in"), Param("staged", "in", "uint8"), Param("w", "in"), Param("bias", "in", "float32"),
    Param("y", "out"), Param("M", "i32"), Param("N", "i32"), Param("K", "i32"), Param("tiles", "i32"),
    Param("turns", "i32"), Param("ahead", "i32"), Param("depth", "i32"), Param("split_log", "i32"),
    Param("rows_log", "i32"), Param("stride", "i32"),
    Param("column", "i32"), Param("x_type", "i32"), Param("y_type", "i32")),
    {"FORMAT": (*FRAGMENTS, *DENSE), "WARPS": (8, 16), "XROWS": (1, 4, 8, 16), "TILES": (1, 2)},
    legal, cost=multiplied)
KERNELS = (SMALL,)


def takes(w: Weight, dtype: np.dtype[Any]) -> bool:
    """Whether `multiply` takes this weight with activations of `dtype`."""
    if w.format in DENSE:
        return dtype.name in ACT and w.shape[1] % COLS == 0 and aligned(w.parts[0])
    return w.format.endswith(SUFFIX)


def tile_bytes(form: str) -> int:
    """Bytes of a tile in shared memory."""
    return DENSE_TILE if form in DENSE else FRAGMENTS[form].tile_bytes


def geometry(form: str, n: int, k: int) -> Geometry:
    """For a matrix [n, k]."""
    blocks = -(-k // COLS)
    if blocks >= 16 and n <= NARROW and k <= LONG and tile_bytes(form) < LIGHT:
        return GEOMETRIES[0]
    return next((g for g in GEOMETRIES[1:] if g.split <= blocks), GEOMETRIES[-1])


def multiply(q: Queue, x: Staged, w: Weight, bias: Array | None, out: Tensor, column: int,
             wanted: Tiling | None = None) -> None:
    """x [M, K] times w [N, K] (see `takes`), transposed, plus bias [N], into columns of `out`; M up to 16.

    `wanted` goes before the tiling that was measured or that `choose` takes."""
    (m, k), n, wide = x.shape, w.shape[0], -(-w.shape[1] // COLS)
    form = w.format.removesuffix(SUFFIX)
    shape = geometry(form, n, k)
    wanted = wanted or measured(q, form, shape, m, n, k)
    found = choose(form, shape, m, n, q.sm_count, SHARED_LIMIT[q.arch] - STATIC, wanted)
    if found is None:  # too many rows at once for registers or shared memory
        half = -(-m // 2)
        multiply(q, staged(q, x.rows[:half]), w, bias, out[:half], column)
        multiply(q, staged(q, x.rows[half:]), w, bias, out[half:], column)
        return
    xrows, tiling, left = found
    groups = -(-n // (ROWS * shape.warps // shape.split * tiling.tiles))
    turns = -(-groups // (tiling.ctas * q.sm_count))
    depth = min(-(-wide // shape.split), room_for(left, shape, m))
    v = SMALL.variant(FORMAT=form, WARPS=BOUNDS[xrows, tiling.tiles], XROWS=xrows, TILES=tiling.tiles)
    rows = ROWS * tiling.tiles * shape.warps // shape.split
    smem = fixed_bytes(form, shape, xrows, tiling) + shape.warps * depth * block_bytes(m)
    q.launch(v, (-(-groups // turns), 1, 1), (32 * shape.warps, 1, 1), x.rows, x.blocks, w.parts[0], bias, out, m, n, k,
             wide, turns, tiling.ahead, depth, shape.split.bit_length() - 1, rows.bit_length() - 1, out.shape[1],
             column, TYPES[x.dtype.name], TYPES[out.dtype.name], smem=smem, pdl=True)


def room_for(shared: int, shape: Geometry, m: int) -> int:
    """Blocks of m rows for each warp in so many bytes."""
    return min(shared // (shape.warps * block_bytes(m)), MOST_BLOCKS)


def fixed_bytes(form: str, shape: Geometry, xrows: int, tiling: Tiling) -> int:
    """Shared memory of a CTA besides its blocks of activations."""
    return shape.warps * tiling.tiles * (tiling.ahead * tile_bytes(form) + 2 * -(-xrows // 8) * SUMS)


def kernel_rows(shape: Geometry, m: int) -> int | None:
    """Activation rows of the kernel for m rows; None if there is none."""
    return next((r for r in XROWS[shape.warps] if r >= m), None)


def measured(q: Queue, form: str, shape: Geometry, m: int, n: int, k: int) -> Tiling | None:
    """The tiling that was fastest on a GPU like this one, if it was measured."""
    xrows = kernel_rows(shape, m)
    found = None if xrows is None else tuned.choices(q.arch, q.sm_count).get(tuned.key(SMALL.entry, form, n, k, xrows))
    return Tiling(*found) if found else None


def choose(form: str, shape: Geometry, m: int, n: int, sm_count: int, shared: int,
           wanted: Tiling | None = None) -> tuple[int, Tiling, int] | None:
    """Activation rows of the kernel, tiling, and bytes of shared memory for blocks; None if m rows fit no kernel.

    `wanted` is taken if it fits. None of it changes a result.
    """
    xrows = kernel_rows(shape, m)
    if xrows is None:
        return None
    fitting = [(t, min(shared // t.ctas - fixed_bytes(form, shape, xrows, t), shape.warps * BLOCKS_BUDGET))
               for t in TILINGS[shape.warps, xrows]]
    fitting = [(t, left) for t, left in fitting if left >= shape.warps * block_bytes(m)]
    for tiling, left in fitting:
        if tiling == wanted:
            return xrows, tiling, left
    rows = ROWS * shape.warps // shape.split
    groups = [-(-n // (rows * t.tiles)) for t, _ in fitting]
    # Two CTAs to a multiprocessor only where there are so many, else one may hold all of x; and not half of them idle.
    best = [f for f, g in zip(fitting, groups, strict=True) if g * 2 >= sm_count and (f[0].ctas == 1 or g > sm_count)]
    best = best[:1] or fitting[-1:]
    return (xrows, *best[0]) if best else None
