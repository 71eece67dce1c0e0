"""Launchers of ptx/moe/rows.cu: a CTA makes 16 outputs of one pair, or of one token from all its pairs. Weights in
fragment order go to expert_small.py."""
from __future__ import annotations

import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.kernels.cost import moved, routed
from blackwell_infer.kernels.kernel import Kernel, Param, Variant
from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.cuda import expert_small
from blackwell_infer.ops.cuda.linear import RING
from blackwell_infer.ops.cuda.parts import WEIGHT, pointers
from blackwell_infer.ops.cuda.rows import ACTS, FORMATS, choose
from blackwell_infer.quant.format import Experts
from blackwell_infer.quant.fragments import SUFFIX
from blackwell_infer.types import Array

TILE = 16
MODES = {"gate": 0, "sum": 1, "plain": 2}

ROWS = Kernel("moe/rows.cu", "moe_rows", (
    Param("x", "in"), *WEIGHT, Param("experts", "in", "int32"), Param("weights", "in", "float32"), Param("y", "out"),
    Param("N", "i32"), Param("K", "i32"), Param("top", "i32"), Param("mode", "i32"), Param("stride", "i32"),
    Param("column", "i32")), {"FORMAT": FORMATS, "ACT": tuple(ACTS.values())}, cost=routed)
GATED = Kernel("moe/gate.cu", "moe_gate", (
    Param("gate_up", "in", "float32"), Param("places", "in", "int32"), Param("y", "out"), Param("P", "i32"),
    Param("I", "i32")), {"ACT": tuple(ACTS.values())}, cost=moved)
KERNELS = (ROWS, GATED, *expert_small.KERNELS)

VARIANTS = {(form, dtype): ROWS.variant(FORMAT=form, ACT=act) for form in FORMATS for dtype, act in ACTS.items()}
GATES: dict[str, Variant] = {dtype: GATED.variant(ACT=act) for dtype, act in ACTS.items()}


def experts(q: Queue, x: Array, routing: Routing, gate_up: tuple[Experts, ...], down: Experts) -> Array:
    """See `ops.api.Ops.experts`. Any lengths of rows."""
    (tokens, hidden), top, inner = x.shape, routing.experts.shape[1], down.weight.shape[1]
    y = q.empty((tokens, hidden), x.dtype)
    if not tokens:
        return y
    h = q.empty((tokens * top, inner), x.dtype)
    if len(gate_up) == 1:
        multiply(q, x, routing, gate_up[0], h, "gate", 0)
    else:
        both = q.empty((tokens * top, 2 * inner), np.float32)
        for i, part in enumerate(gate_up):
            multiply(q, x, routing, part, both, "plain", i * inner)
        gate(q, both, h)
    multiply(q, h, routing, down, y, "sum", 0)
    return y


def multiply(q: Queue, x: Array, routing: Routing, w: Experts, out: Tensor, mode: str, column: int) -> None:
    """Products of one matrix of each pair's expert, as `mode` says."""
    if w.weight.format.endswith(SUFFIX) and x.dtype != np.float32:
        expert_small.multiply(q, x, routing, w, out, mode, column)
        return
    v = choose(q, "experts", VARIANTS, w.weight.format, x.dtype)
    tokens, top = routing.experts.shape
    rows, segments = (w.rows // 2, 2) if mode == "gate" else (w.rows, top if mode == "sum" else 1)
    grid = (-(-rows // TILE), tokens if mode == "sum" else tokens * top, 1)
    q.launch(v, grid, (256, 1, 1), x, *pointers(w.weight), routing.experts, routing.weights, out, w.rows,
             w.weight.shape[1], top, MODES[mode], out.shape[1], column,
             smem=8 * TILE * RING[w.weight.format] + 512 * segments, pdl=True)


def gate(q: Queue, both: Tensor, out: Tensor, places: Tensor | None = None) -> None:
    """out [P, I] = silu(gate) * up of float32 [gate I | up I]; of all rows, or of those at `places` [pairs, 2]."""
    pairs, inner = out.shape if places is None else (places.shape[0], out.shape[1])
    q.launch(GATES[out.dtype.name], (-(-inner // 128), min(pairs, 65535), 1), (128, 1, 1), both, places, out, pairs,
             inner, pdl=True)
