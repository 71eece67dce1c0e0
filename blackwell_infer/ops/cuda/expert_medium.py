"""Launchers of ptx/moe/medium.cu and of what it needs: pairs sorted by expert into groups of a few rows, their
activations as operands, and products that read an expert's weights once for a group.

A pair's sums are those of expert_small.py, bit for bit. Nothing is read on the host; sizes are those of the worst
routing.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.device.check import SHARED_LIMIT
from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.kernels.cost import Call, Cost, moved
from blackwell_infer.kernels.kernel import Kernel, Param, Value
from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.cuda.expert_groups import combine, most_tiles, sort_shape
from blackwell_infer.ops.cuda.expert_rows import gate
from blackwell_infer.ops.cuda.expert_small import stack_rows
from blackwell_infer.ops.cuda.small import STATIC
from blackwell_infer.ops.cuda.staged import ACT, block_bytes
from blackwell_infer.quant.format import Experts
from blackwell_infer.quant.fragments import FRAGMENTS, STACKED, SUFFIX
from blackwell_infer.quant.lanes import COLS, ROWS
from blackwell_infer.types import Array

MOST_PER_EXPERT = 24
"""Pairs per expert on average up to which products go through here. Weights are multiplied ceil(pairs / 16) times; the
tiles of expert_groups.py cost as much as three times and serve 64 pairs."""
NARROW = 8
"""Pairs per expert on average up to which a group has 8 rows, else 16: these take a third more instructions, and fewer
warps at a time"""
PAIR = 2
"""Tiles that a warp multiplies at once"""
MOST_AHEAD, ROOM = 4, 160 << 10
"""Most pairs of tiles that a warp fetches ahead, and bytes of shared memory for all of them: what it leaves of a
multiprocessor's memory caches activations"""
GROUPS = (8, 16)
"""Rows of a group"""
WARPS: Mapping[tuple[int, int], tuple[str, ...]] = {
    (8, 12): ("sm_90a", "sm_100f"), (8, 8): ("sm_120f",), (16, 8): ("sm_90a", "sm_100f", "sm_120f")}
"""Rows of a group and most warps of a CTA that leave enough registers and shared memory, and archs of that choice"""


def product_cost(call: Call) -> Cost:
    """Of evenly routed pairs: the expected number of different experts is read, and operands and products of pairs."""
    n, most = call.number("N"), call.shape("groups")[0] - 1
    count, (places,) = call.shape("w")[0] // n, call.shape("order")
    pairs = min(most, count) + max(0, most - count) * places // most
    met = count * (1 - (1 - 1 / count) ** pairs)
    nbytes = call.nbytes("w") * met / count + call.nbytes("staged", "y") * pairs / places
    return Cost(int(nbytes), 2 * pairs * n * call.number("K"))


PLACES = Kernel("moe/sort.cu", "moe_places", (
    Param("experts", "in", "int32"), Param("places", "out", "int32"), Param("order", "out", "int32"),
    Param("groups", "out", "int32"), Param("arrived", "out", "int32"), Param("P", "i32"), Param("E", "i32"),
    Param("rows", "i32"), Param("zeros", "i32")), cost=moved)
STAGE = Kernel("moe/stage.cu", "moe_stage", (
    Param("x", "in"), Param("places", "in", "int32"), Param("staged", "out", "uint8"), Param("K", "i32"),
    Param("top", "i32"), Param("tiles", "i32")), {"ACT": tuple(ACT.values()), "XROWS": GROUPS}, cost=moved)
PARAMS = (Param("x", "in"), Param("staged", "in", "uint8"), Param("w", "in", "uint8"), Param("groups", "in", "int32"),
          Param("order", "in", "int32"), Param("y", "out"), Param("next", "out", "uint8"),
          Param("arrived", "inout", "int32"), Param("N", "i32"), Param("K", "i32"), Param("top", "i32"),
          Param("ahead", "i32"), Param("stride", "i32"), Param("column", "i32"))
DEFINES: Mapping[str, tuple[Value, ...]] = {"FORMAT": STACKED, "ACT": tuple(ACT.values()), "MODE": ("gate", "plain")}
MEDIUM = {(rows, warps): Kernel("moe/medium.cu", "moe_medium", PARAMS, {**DEFINES, "XROWS": (rows,), "WARPS": (warps,)},
                                archs=archs, cost=product_cost) for (rows, warps), archs in WARPS.items()}
KERNELS = (PLACES, STAGE, *MEDIUM.values())


class Places(msgspec.Struct, frozen=True):
    """Pairs in groups of `rows` places of one expert each: `places` [P, 2], `order` [all], `groups` [1 + most, 4];
    `arrived` [most blocks of 256 columns between the products]: zeros, for one product."""

    places: Tensor
    order: Tensor
    groups: Tensor
    arrived: Tensor
    rows: int

    @property
    def most(self) -> int:
        """Groups of the worst routing."""
        return self.groups.shape[0] - 1


def takes(pairs: int, stacks: tuple[Experts, ...], dtype: np.dtype[Any]) -> bool:
    """Whether so many pairs and these matrices go through here."""
    return (dtype.name in ACT and all(stack.weight.format.endswith(SUFFIX) for stack in stacks)
            and pairs <= MOST_PER_EXPERT * stacks[0].count)


def experts(q: Queue, x: Array, routing: Routing, gate_up: tuple[Experts, ...], down: Experts) -> Array:
    """See `ops.api.Ops.experts`. x and weights as `takes` says, T >= 1."""
    (tokens, hidden), top, inner = x.shape, routing.experts.shape[1], down.weight.shape[1]
    found = sort(q, routing, down.count, inner)
    staged, rows = stage(q, x, found, top), found.most * found.rows
    h = q.empty((rows, inner), x.dtype)
    if len(gate_up) == 1:
        following = room(q, found, inner)
        multiply(q, x, staged, found, gate_up[0], h, top, following=following)
    else:
        both = q.empty((rows, 2 * inner), np.float32)
        for i, part in enumerate(gate_up):
            multiply(q, x, staged, found, part, both, top, i * inner)
        gate(q, both, h, found.places)
        following = stage(q, h, found, 0)
    z = q.empty((rows, hidden), np.float32)
    multiply(q, h, following, found, down, z, 0)
    y = q.empty((tokens, hidden), x.dtype)
    combine(q, z, found.places, routing.weights, y)
    return y


def sort(q: Queue, routing: Routing, count: int, inner: int) -> Places:
    """The groups of a routing over `count` experts, `inner` columns between their products."""
    tokens, top = routing.experts.shape
    pairs = tokens * top
    rows = 8 if pairs <= NARROW * count else 16
    most, (threads, smem) = most_tiles(pairs, count, rows), sort_shape(pairs, count)
    found = Places(q.empty((pairs, 2), np.int32), q.empty((most * rows,), np.int32), q.empty((1 + most, 4), np.int32),
                   q.empty((most * -(-inner // COLS),), np.int32), rows)
    q.launch(PLACES.variant(), (1, 1, 1), (threads, 1, 1), routing.experts, found.places, found.order, found.groups,
             found.arrived, pairs, count, rows, found.arrived.shape[0], smem=smem, pdl=True)
    return found


def stage(q: Queue, x: Array, found: Places, top: int) -> Tensor:
    """Operands of every place: of row i / top of x for pair i, or, with top 0, of the row of its place."""
    pairs, k = found.places.shape[0], x.shape[1]
    tiles, staged = -(-k // COLS), room(q, found, k)
    warps = min(tiles, 8)
    v = STAGE.variant(ACT=ACT[x.dtype.name], XROWS=found.rows)
    q.launch(v, (-(-tiles // warps), pairs, 1), (32 * warps, 1, 1), x, found.places, staged, k, top, tiles, pdl=True)
    return staged


def room(q: Queue, found: Places, k: int) -> Tensor:
    """Memory for operands of k columns of every place."""
    return q.empty((found.most * -(-k // COLS) * block_bytes(found.rows),), np.uint8)


def multiply(q: Queue, x: Array, staged: Tensor, found: Places, w: Experts, out: Tensor, top: int, column: int = 0,
             following: Tensor | None = None) -> None:
    """Products of one matrix of each place's expert, float32, into columns of `out`; `following`: of gate and up in
    one, gated, and as operands too."""
    mode = "plain" if following is None else "gate"
    form = w.weight.format.removesuffix(SUFFIX)
    stack = stack_rows(w, mode == "gate")
    most_warps = next(warps for (rows, warps), archs in WARPS.items() if rows == found.rows and q.arch in archs)
    v = MEDIUM[found.rows, most_warps].variant(FORMAT=form, ACT=ACT[x.dtype.name], MODE=mode, XROWS=found.rows,
                                               WARPS=most_warps)
    stage_bytes = PAIR * FRAGMENTS[form].tile_bytes
    warps, ahead = shape(stage_bytes, most_warps, SHARED_LIMIT[q.arch] - STATIC)
    units = found.most * -(-w.rows // (PAIR * ROWS))
    q.launch(v, (min(q.sm_count, units), 1, 1), (32 * warps, 1, 1), x, staged, stack, found.groups, found.order, out,
             following, found.arrived, w.rows, w.weight.shape[1], top, ahead, out.shape[1], column,
             smem=warps * ahead * stage_bytes, pdl=True)


def shape(stage_bytes: int, most_warps: int, shared: int) -> tuple[int, int]:
    """Warps of a CTA, and stages of so many bytes that each fetches ahead: two or more, if fewer warps make room."""
    room = min(shared, ROOM)
    warps = next((n for n in range(most_warps, 3, -1) if 2 * n * stage_bytes <= room), 4)
    return warps, max(1, min(MOST_AHEAD, room // (warps * stage_bytes)))
