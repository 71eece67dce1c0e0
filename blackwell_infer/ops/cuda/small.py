"""Launcher of ptx/linear/small.cu: matmuls of up to 16 activation rows over weights in fragment order, and over dense
16-bit weights as they are."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
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


PAIRS = (("q4_k", "q6_k"), ("fp8", "bf16"))
"""Formats that meet in models, each pair in one kernel: two matrices of the same x are one launch then"""
HELD = {form: pair for pair in PAIRS for form in pair}


def held(form: str) -> tuple[str, str]:
    """The formats of the kernel that takes this one."""
    return HELD.get(form, (form, form))


def legal(defines: Mapping[str, Value]) -> bool:
    return (BOUNDS.get((int(defines["XROWS"]), int(defines["TILES"]))) == defines["WARPS"]
            and held(str(defines["FORMAT"])) == (defines["FORMAT"], defines["SECOND"]))


FORMATS = (*FRAGMENTS, *DENSE)
SMALL = Kernel("linear/small.cu", "linear_small", (
    Param("x", "in"), Param("staged", "in", "uint8"), Param("w", "in"), Param("w1", "in"),
    Param("bias", "in", "float32"), Param("bias1", "in", "float32"), Param("y", "out"), Param("M", "i32"),
    Param("N", "i32"), Param("N1", "i32"), Param("K", "i32"), Param("tiles", "i32"), Param("turns", "i32"),
    Param("turns1", "i32"), Param("ahead", "i32"), Param("ahead1", "i32"), Param("column", "i32"),
    Param("column1", "i32"), Param("first1", "i32"), Param("SECOND", "i32"), Param("depth", "i32"),
    Param("split_log", "i32"), Param("rows_log", "i32"), Param("stride", "i32"), Param("x_type", "i32"),
    Param("y_type", "i32")),
    {"FORMAT": FORMATS, "SECOND": FORMATS, "WARPS": (8, 16), "XROWS": (1, 4, 8, 16), "TILES": (1, 2)},
    legal, cost=multiplied)
KERNELS = (SMALL,)


class Part(msgspec.Struct, frozen=True):
    """A matrix [N, K] (see `takes`), its bias [N], and the first of its columns of the result."""

    w: Weight
    bias: Array | None
    column: int

    @property
    def form(self) -> str:
        return self.w.format.removesuffix(SUFFIX)

    @property
    def n(self) -> int:
        return self.w.shape[0]


def takes(w: Weight, dtype: np.dtype[Any]) -> bool:
    """Whether `multiply` takes this weight with activations of `dtype`."""
    if w.format in DENSE:
        return dtype.name in ACT and w.shape[1] % COLS == 0 and aligned(w.parts[0])
    return w.format.endswith(SUFFIX)


def tile_bytes(form: str) -> int:
    """Bytes of a tile in shared memory."""
    return DENSE_TILE if form in DENSE else FRAGMENTS[form].tile_bytes


def companions(a: Weight, b: Weight) -> bool:
    """Whether matrices that follow one another are one launch."""
    forms = [w.format.removesuffix(SUFFIX) for w in (a, b)]
    return set(forms) == set(held(forms[0])) and forms[0] != forms[1] and min(a.shape) > 0 and min(b.shape) > 0


def geometry(form: str, n: int, k: int, alone: bool = True) -> Geometry:
    """For a matrix [n, k], `alone` or with a companion."""
    blocks = -(-k // COLS)
    if alone and blocks >= 16 and n <= NARROW and k <= LONG and tile_bytes(form) < LIGHT:
        return GEOMETRIES[0]
    return next((g for g in GEOMETRIES[1:] if g.split <= blocks), GEOMETRIES[-1])


class Share(msgspec.Struct, frozen=True):
    """CTAs of one matrix, how many groups of rows each makes, and how many times over it reads ahead."""

    ctas: int
    turns: int
    ahead: int


def multiply(q: Queue, x: Staged, parts: Sequence[Part], out: Tensor, wanted: Tiling | None = None) -> None:
    """x [M, K] times each matrix, transposed, plus bias, into columns of `out`; M up to 16; one part or two
    `companions`, the first of them of any size.

    `wanted` goes before the tiling that was measured or that `choose` takes."""
    (m, k), main = x.shape, parts[0]
    wide, sizes = -(-k // COLS), tuple((part.form, part.n) for part in parts)
    shape = geometry(main.form, main.n, k, len(parts) == 1)
    if wanted is None and len(parts) == 1:
        wanted = measured(q, main.form, shape, m, main.n, k)
    found = choose(sizes, shape, m, k, q.sm_count, SHARED_LIMIT[q.arch] - STATIC, wanted)
    if found is None:  # too many rows at once for registers or shared memory
        half = -(-m // 2)
        multiply(q, staged(q, x.rows[:half]), parts, out[:half])
        multiply(q, staged(q, x.rows[half:]), parts, out[half:])
        return
    xrows, tiling, left = found
    depth = min(-(-wide // shape.split), room_for(left, shape, m))
    first, second = held(main.form)
    v = SMALL.variant(FORMAT=first, SECOND=second, WARPS=BOUNDS[xrows, tiling.tiles], XROWS=xrows, TILES=tiling.tiles)
    smem = fixed_bytes(sizes, shape, xrows, tiling) + shape.warps * depth * block_bytes(m)
    a, b = shares(sizes, shape, tiling, q.sm_count)
    other = parts[-1] if len(parts) == 2 else Part(main.w, None, 0)
    kinds = sum(1 << i for i, part in enumerate(parts) if part.form == second != first)
    q.launch(v, (a.ctas + b.ctas, 1, 1), (32 * shape.warps, 1, 1), x.rows, x.blocks, main.w.parts[0],
             other.w.parts[0] if b.ctas else None, main.bias, other.bias, out, m, main.n, other.n if b.ctas else 0, k,
             wide, a.turns, b.turns, a.ahead, b.ahead, main.column, other.column, a.ctas, kinds, depth,
             shape.split.bit_length() - 1, group_rows(shape, tiling).bit_length() - 1, out.shape[1],
             TYPES[x.dtype.name], TYPES[out.dtype.name], smem=smem, pdl=True)


EVEN, EVENNESS, LEAST_LONG = Tiling(1, 2, 2), 0.8, 3
"""Groups of fewer rows, and as many CTAs as there is room for, where they leave the fullest multiprocessor no more than
so much of its work, and every warp has so many tiles a row at least. H200, 1 row, NVFP4 5120 x 17408: 18.5 us for 23.4;
for 4 and 8 rows steps became 1 and 2 % longer, so there is no such tiling"""
Sizes = Sequence[tuple[str, int]]
"""Format and rows of the matrices of a launch"""


def group_rows(shape: Geometry, tiling: Tiling) -> int:
    """Rows of a matrix that a CTA makes at a time."""
    return ROWS * tiling.tiles * shape.warps // shape.split


def shares(sizes: Sizes, shape: Geometry, tiling: Tiling, sm_count: int) -> tuple[Share, Share]:
    """What each matrix gets; nothing for a second that there is not. All CTAs run at once, and read about as much."""
    rows, slots = group_rows(shape, tiling), tiling.ctas * sm_count
    groups = [-(-n // rows) for _, n in sizes]
    heavy = max(range(len(sizes)), key=lambda i: tile_bytes(sizes[i][0]) * groups[i])
    bytes_of = [tile_bytes(form) for form, _ in sizes]
    most = -(-sum(groups) // slots)
    while True:
        turns = [max(1, most * bytes_of[heavy] // size) if i != heavy else most for i, size in enumerate(bytes_of)]
        ctas = [-(-count // turn) for count, turn in zip(groups, turns, strict=True)]
        if sum(ctas) <= slots:
            break
        most += 1
    if len(sizes) == 1 and tiling == EVEN:
        ctas = [min(groups[0], slots)]
    ring = ring_bytes(sizes, shape, tiling)
    found = [Share(share, -(-count // share), min(tiling.ahead, ring // (shape.warps * tiling.tiles * size)))
             for count, share, size in zip(groups, ctas, bytes_of, strict=True)]
    return found[0], found[1] if len(found) == 2 else Share(0, 1, 1)


def ring_bytes(sizes: Sizes, shape: Geometry, tiling: Tiling) -> int:
    """Shared memory for tiles: the matrix of most bytes is read ahead as often as the tiling says, the other at least
    once."""
    heavy = max(sizes, key=lambda size: tile_bytes(size[0]) * size[1])
    most = max(tiling.ahead * tile_bytes(heavy[0]), *(tile_bytes(form) for form, _ in sizes), 0)
    return shape.warps * tiling.tiles * most


def room_for(shared: int, shape: Geometry, m: int) -> int:
    """Blocks of m rows for each warp in so many bytes."""
    return min(shared // (shape.warps * block_bytes(m)), MOST_BLOCKS)


def fixed_bytes(sizes: Sizes, shape: Geometry, xrows: int, tiling: Tiling) -> int:
    """Shared memory of a CTA besides its blocks of activations."""
    return ring_bytes(sizes, shape, tiling) + shape.warps * tiling.tiles * 2 * -(-xrows // 8) * SUMS


def kernel_rows(shape: Geometry, m: int) -> int | None:
    """Activation rows of the kernel for m rows; None if there is none."""
    return next((r for r in XROWS[shape.warps] if r >= m), None)


def measured(q: Queue, form: str, shape: Geometry, m: int, n: int, k: int) -> Tiling | None:
    """The tiling that was fastest on a GPU like this one, if it was measured."""
    xrows = kernel_rows(shape, m)
    found = None if xrows is None else tuned.choices(q.arch, q.sm_count).get(tuned.key(SMALL.entry, form, n, k, xrows))
    return Tiling(*found) if found else None


def choose(sizes: Sizes, shape: Geometry, m: int, k: int, sm_count: int, shared: int,
           wanted: Tiling | None = None) -> tuple[int, Tiling, int] | None:
    """Activation rows of the kernel, tiling, and bytes of shared memory for blocks; None if m rows fit no kernel.

    `wanted` is taken if it fits. None of it changes a result.
    """
    xrows = kernel_rows(shape, m)
    if xrows is None:
        return None
    fitting = [(t, min(shared // t.ctas - fixed_bytes(sizes, shape, xrows, t), shape.warps * BLOCKS_BUDGET))
               for t in TILINGS[shape.warps, xrows]]
    fitting = [(t, left) for t, left in fitting if left >= shape.warps * block_bytes(m)]
    for tiling, left in fitting:
        if tiling == wanted:
            return xrows, tiling, left
    groups = [sum(-(-n // group_rows(shape, t)) for _, n in sizes) for t, _ in fitting]
    # Two CTAs to a multiprocessor only where there are so many, else one may hold all of x; and not half of them idle.
    best = [f for f, g in zip(fitting, groups, strict=True) if g * 2 >= sm_count and (f[0].ctas == 1 or g > sm_count)]
    best = best[:1] or fitting[-1:]
    if not best:
        return None
    even = [f for f in fitting if f[0] == EVEN and load(sizes, shape, f[0], sm_count) <= EVENNESS * load(
        sizes, shape, best[0][0], sm_count)] if len(sizes) == 1 and k >= LEAST_LONG * COLS * shape.split else []
    return (xrows, *(even or best)[0])


def load(sizes: Sizes, shape: Geometry, tiling: Tiling, sm_count: int) -> int:
    """Most rows that a multiprocessor makes."""
    rows = group_rows(shape, tiling)
    return rows * sum(-(-n // (rows * sm_count)) for _, n in sizes)
