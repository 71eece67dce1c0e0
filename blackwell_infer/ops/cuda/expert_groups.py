"""Launchers of ptx/moe/sort.cu, groups.cu and combine.cu: pairs sorted by expert, products of tiles of them, their sum.

Counts, ids and offsets stay on the device; grids are sized for the worst distribution of so many pairs.
"""
from __future__ import annotations

import msgspec
import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.kernels.cost import moved, routed
from blackwell_infer.kernels.kernel import Kernel, Param, Variant
from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.cuda.expert_rows import gate
from blackwell_infer.ops.cuda.expert_small import stack_rows
from blackwell_infer.ops.cuda.parts import WEIGHT, pointers
from blackwell_infer.ops.cuda.rows import ACTS, FORMATS, choose
from blackwell_infer.quant.format import Experts
from blackwell_infer.quant.fragments import FRAGMENTS, STACKED, SUFFIX
from blackwell_infer.quant.lanes import ROWS
from blackwell_infer.types import Array

CHUNK = 512
"""pairs that one CTA counts and places"""
SORT_BUDGET = 48 << 10
"""Bytes of shared memory for the counts of a sort by one CTA"""
TILE_N = 128
GATE, DOWN, PLAIN = 0, 1, 2
TILES = ((8, 16), (48, 64))
"""Up to so many pairs per expert on average, tiles of so many rows; beyond, `WIDEST`."""
WIDEST = 128
RAW = {"f32": 144, "f16": 144, "bf16": 144, "q8_0": 160, "q4_0": 160, "q4_k": 160, "q5_k": 176, "q6_k": 224,
       "nvfp4": 176, "nvfp4_f16": 208, "mxfp4": 176, "mxfp8": 176, "fp8": 144, "fp8_block": 176,
       **{form + SUFFIX: FRAGMENTS[form].tile_bytes // ROWS for form in STACKED}}
"""Bytes of shared memory per weight row and part: PART_BYTES of ptx/moe/parts.cuh by 16 rows."""

COUNT = Kernel("moe/sort.cu", "moe_count", (
    Param("experts", "in", "int32"), Param("counts", "out", "int32"), Param("P", "i32"), Param("E", "i32")), cost=moved)
OFFSETS = Kernel("moe/sort.cu", "moe_offsets", (
    Param("counts", "inout", "int32"), Param("offsets", "out", "int32"), Param("tiles", "out", "int32"),
    Param("chunks", "i32"), Param("E", "i32"), Param("tile_rows", "i32"), Param("B", "i32")),
    cost=moved)
SCATTER = Kernel("moe/sort.cu", "moe_scatter", (
    Param("experts", "in", "int32"), Param("places", "in", "int32"), Param("order", "out", "int32"), Param("P", "i32"),
    Param("E", "i32")), cost=moved)
SORT = Kernel("moe/sort.cu", "moe_sort", (
    Param("experts", "in", "int32"), Param("offsets", "out", "int32"), Param("tiles", "out", "int32"),
    Param("order", "out", "int32"), Param("P", "i32"), Param("E", "i32"), Param("tile_rows", "i32"), Param("B", "i32")),
    cost=moved)
GROUPS = Kernel("moe/groups.cu", "moe_groups", (
    Param("x", "in"), *WEIGHT, Param("order", "in", "int32"), Param("offsets", "in", "int32"),
    Param("tiles", "in", "int32"), Param("y", "out"), Param("N", "i32"), Param("K", "i32"), Param("top", "i32"),
    Param("mode", "i32"), Param("stride", "i32"), Param("column", "i32")),
    {"FORMAT": FORMATS, "ACT": ("f16", "bf16"), "TILE_M": (16, 64, 128)}, cost=routed)
TILED = Kernel(GROUPS.source, GROUPS.entry, GROUPS.params,
               {**GROUPS.defines, "FORMAT": STACKED, "TILED": (1,)}, cost=routed)
COMBINE = Kernel("moe/combine.cu", "moe_combine", (
    Param("z", "in", "float32"), Param("places", "in", "int32"), Param("weights", "in", "float32"), Param("y", "out"),
    Param("H", "i32"), Param("top", "i32")), {"ACT": ("f16", "bf16")}, cost=moved)
KERNELS = (COUNT, OFFSETS, SCATTER, SORT, GROUPS, TILED, COMBINE)

HALVES = {"float16": "f16", "bfloat16": "bf16"}
VARIANTS: dict[int, dict[tuple[str, str], Variant]] = {
    rows: {(form, dtype): GROUPS.variant(FORMAT=form, ACT=act, TILE_M=rows) for form in FORMATS
           for dtype, act in HALVES.items()}
          | {(form + SUFFIX, dtype): TILED.variant(FORMAT=form, ACT=act, TILE_M=rows, TILED=1) for form in STACKED
             for dtype, act in HALVES.items()} for rows in (16, 64, 128)}
COMBINES = {dtype: COMBINE.variant(ACT=ACTS[dtype]) for dtype in HALVES}


class Sorted(msgspec.Struct, frozen=True):
    """Pairs in the order of their experts: `order` [P], `offsets` [E + 1], `tiles` [B, 2] of `rows` places each."""

    order: Tensor
    offsets: Tensor
    tiles: Tensor
    rows: int
    top: int


def supported(x: Array, down: Experts) -> bool:
    """Whether the grouped products take activations of this type, and rows of these lengths."""
    return x.dtype.name in HALVES and x.shape[1] % 8 == 0 and down.weight.shape[1] % 8 == 0


def experts(q: Queue, x: Array, routing: Routing, gate_up: tuple[Experts, ...], down: Experts) -> Array:
    """See `ops.api.Ops.experts`. x as `supported` says, T >= 1."""
    (tokens, hidden), top, inner = x.shape, routing.experts.shape[1], down.weight.shape[1]
    found = sort(q, routing, down.count)
    h = q.empty((tokens * top, inner), x.dtype)
    if len(gate_up) == 1:
        multiply(q, x, found, gate_up[0], h, GATE, 0)
    else:
        both = q.empty((tokens * top, 2 * inner), np.float32)
        for i, part in enumerate(gate_up):
            multiply(q, x, found, part, both, PLAIN, i * inner)
        gate(q, both, h)
    z = q.empty((tokens * top, hidden), np.float32)
    multiply(q, h, found, down, z, DOWN, 0)
    y = q.empty((tokens, hidden), x.dtype)
    combine(q, z, None, routing.weights, y)
    return y


def combine(q: Queue, z: Tensor, places: Tensor | None, weights: Array, y: Tensor) -> None:
    """y [T, H] of the products of pairs, at `places` [T top] of z or in their own order, and their weights."""
    (tokens, hidden), top = y.shape, weights.shape[1]
    q.launch(COMBINES[y.dtype.name], (tokens, -(-hidden // 512), 1), (128, 1, 1), z, places, weights, y, hidden, top,
             pdl=True)


def tile_rows(pairs: int, count: int) -> int:
    """Rows of a tile for so many pairs over so many experts."""
    return next((rows for most, rows in TILES if pairs <= most * count), WIDEST)


def most_tiles(pairs: int, count: int, rows: int) -> int:
    """Tiles of the worst distribution: every expert that has a pair may leave one tile partly filled."""
    used = min(pairs, count)
    return used + (pairs - used) // rows


def sort_shape(pairs: int, count: int) -> tuple[int, int]:
    """Threads, and bytes of shared memory, of a sort by one CTA."""
    warps = max(1, min(-(-pairs // 32), 32, SORT_BUDGET // (4 * count) - 2))
    return 32 * warps, 4 * ((warps + 2) * count + -(-count // 32) + 2)


def sort(q: Queue, routing: Routing, count: int) -> Sorted:
    """One launch for few pairs, three for many; nothing is read back."""
    tokens, top = routing.experts.shape
    pairs = tokens * top
    chunks, rows = -(-pairs // CHUNK), tile_rows(pairs, count)
    tiles = most_tiles(pairs, count, rows)
    found = Sorted(q.empty((pairs,), np.int32), q.empty((count + 1,), np.int32), q.empty((tiles, 2), np.int32), rows,
                   top)
    if chunks == 1:
        threads, smem = sort_shape(pairs, count)
        q.launch(SORT.variant(), (1, 1, 1), (threads, 1, 1), routing.experts, found.offsets, found.tiles, found.order,
                 pairs, count, rows, tiles, smem=smem, pdl=True)
        return found
    counts = q.empty((chunks, count), np.int32)
    q.launch(COUNT.variant(), (chunks, 1, 1), (256, 1, 1), routing.experts, counts, pairs, count, pdl=True)
    q.launch(OFFSETS.variant(), (1, 1, 1), (min(-(-(count + 1) // 32) * 32, 1024), 1, 1), counts, found.offsets,
             found.tiles, chunks, count, rows, tiles, smem=4 * count, pdl=True)
    q.launch(SCATTER.variant(), (chunks, 1, 1), (256, 1, 1), routing.experts, counts, found.order, pairs, count,
             pdl=True)
    return found


def multiply(q: Queue, x: Array, found: Sorted, w: Experts, out: Tensor, mode: int, column: int) -> None:
    """Products of one matrix of each place's expert, as `mode` says."""
    form = w.weight.format
    v = choose(q, "experts", VARIANTS[found.rows], form, x.dtype)
    blocks = -(-w.rows // TILE_N)
    if mode == GATE:
        blocks = -(-w.rows // 2 // (TILE_N // 2))
    stored = (stack_rows(w, mode == GATE), None, None) if form.endswith(SUFFIX) else pointers(w.weight)
    smem = 64 * (3 * found.rows + 2 * TILE_N) + 2 * TILE_N * RAW[form]
    q.launch(v, (blocks, found.tiles.shape[0], 1), (256, 1, 1), x, *stored, found.order, found.offsets,
             found.tiles, out, w.rows, w.weight.shape[1], found.top, mode, out.shape[1], column, smem=smem, pdl=True)
