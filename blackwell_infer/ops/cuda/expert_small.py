"""Launcher of ptx/moe/small.cu: products of few tokens' experts over weights in fragment order."""
from __future__ import annotations

from blackwell_infer.device.check import SHARED_LIMIT
from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import routed
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.cuda.rows import choose
from blackwell_infer.ops.cuda.small import STATIC
from blackwell_infer.ops.cuda.staged import ACT, block_bytes
from blackwell_infer.quant.format import Experts
from blackwell_infer.quant.fragments import FRAGMENTS, STACKED, SUFFIX
from blackwell_infer.quant.lanes import COLS, ROWS
from blackwell_infer.types import Array

WARPS, MOST_DEPTH = 8, 8
"""Warps of a CTA, and most tiles (gate: pairs of them) that a warp fetches ahead"""
MODES = ("gate", "sum", "plain")

SMALL = Kernel("moe/small.cu", "moe_small", (
    Param("x", "in"), Param("w", "in", "uint8"), Param("experts", "in", "int32"), Param("weights", "in", "float32"),
    Param("y", "out"), Param("N", "i32"), Param("K", "i32"), Param("top", "i32"), Param("depth", "i32"),
    Param("stride", "i32"), Param("column", "i32")),
    {"FORMAT": STACKED, "ACT": tuple(ACT.values()), "MODE": MODES}, cost=routed)
KERNELS = (SMALL,)

VARIANTS = {mode: {(form + SUFFIX, dtype): SMALL.variant(FORMAT=form, ACT=act, MODE=mode) for form in STACKED
                   for dtype, act in ACT.items()} for mode in MODES}


def stack_rows(w: Experts, halves: bool) -> Array:
    """A stack in fragment order as [rows, bytes of a row], like stored blocks. KernelError: experts that do not begin
    with a tile, or, with `halves`, gate and up that do not."""
    unit = 2 * ROWS if halves else ROWS
    if w.rows % unit:
        raise KernelError(f"experts: {w.weight.format} experts of {w.rows} rows{', half of them gate' * halves}; in "
                          f"this order rows must be a multiple of {unit}")
    rows, part = w.weight.shape[0], w.weight.parts[0]
    found: Array = part.reshape(rows, part.shape[0] // max(rows, 1))
    return found


def multiply(q: Queue, x: Array, routing: Routing, w: Experts, out: Tensor, mode: str, column: int) -> None:
    """Products of one matrix of each pair's expert, as `mode` says."""
    v = choose(q, "experts", VARIANTS[mode], w.weight.format, x.dtype)
    (tokens, top), stack = routing.experts.shape, stack_rows(w, mode == "gate")
    rows = w.rows // 2 if mode == "gate" else w.rows
    segments, at_once = (top, 1) if mode == "sum" else (1, 2 if mode == "gate" else 1)
    units = segments * -(-w.weight.shape[1] // COLS)
    stage = at_once * FRAGMENTS[w.weight.format.removesuffix(SUFFIX)].tile_bytes
    fixed = WARPS * block_bytes(1) + units * at_once * 4 * ROWS + 8 * segments
    # Half of the shared memory: at least two CTAs, or this launch and the next, share a multiprocessor.
    room = (SHARED_LIMIT[q.arch] - STATIC) // 2 - fixed
    depth = max(1, min(-(-units // WARPS), MOST_DEPTH, room // (WARPS * stage)))
    grid = (rows // ROWS, 1 if mode == "sum" else top, tokens)
    q.launch(v, grid, (32 * WARPS, 1, 1), x, stack, routing.experts, routing.weights, out, w.rows,
             w.weight.shape[1], top, depth, out.shape[1], column, smem=WARPS * depth * stage + fixed, pdl=True)
