"""Launchers of ptx/moe/router.cu and route.cu: which experts each token goes to. Nothing of it is read on the host."""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import Call, Cost, elements, moved
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.cuda.linear import logits
from blackwell_infer.ops.cuda.staged import plain
from blackwell_infer.quant.format import Linear, Weight
from blackwell_infer.types import Array

TOKENS = 4
"""tokens of a CTA"""
MOST_TOKENS, MOST_EXPERTS, MOST_TOP, MOST_WARPS = 256, 256, 32, 8
"""What one launch takes"""
FEW, PASS, PARTS = 16, 8, 8
"""Most tokens that all go through the same CTAs; more are dealt in passes of 8 to so many times as many CTAs"""
ROW_BUDGET = 64 << 10
"""Bytes of shared memory for the rows of the router that a CTA multiplies"""
ACTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
DENSE = ("f32", "f16", "bf16")


def chosen(call: Call) -> Cost:
    """Everything once, the logits, which one CTA reads again, twice; products of all tokens and experts."""
    x, count = call.args["x"], call.number("E")
    assert isinstance(x, Array)
    return Cost(call.nbytes(*call.args, "logits"), 2 * elements(x) * count)


ROUTE = Kernel("moe/route.cu", "moe_route", (
    Param("logits", "in", "float32"), Param("experts", "out", "int32"), Param("weights", "out", "float32"),
    Param("T", "i32"), Param("E", "i32"), Param("top", "i32"), Param("norm", "i32"), Param("shared", "i32")),
    cost=moved)
ROUTER = Kernel("moe/router.cu", "moe_router", (
    Param("x", "in"), Param("router", "in"), Param("logits", "out", "float32"), Param("experts", "out", "int32"),
    Param("weights", "out", "float32"), Param("T", "i32"), Param("E", "i32"), Param("H", "i32"), Param("top", "i32"),
    Param("norm", "i32"), Param("shared", "i32"), Param("block", "i32")),
    {"ACT": tuple(ACTS.values()), "WEIGHT": DENSE, "TOKENS": (1, 4, 8)}, cost=chosen)
KERNELS = (ROUTE, ROUTER)


def route(q: Queue, x: Array, router: Linear, top: int, norm: bool, shared: bool = False,
          reproducible: bool = False) -> Routing:
    """x [T, H] -> experts and weights [T, top + shared]; `reproducible`: any number of tokens as few are."""
    tokens, count = x.shape[0], sum(block.shape[0] for block in router) - shared
    if not 1 <= top <= count:
        raise KernelError(f"route: top {top} of {count} experts; it must lie between 1 and their number")
    found = Routing(q.empty((tokens, top + shared), np.int32), q.empty((tokens, top + shared), np.float32))
    at_once = min(tokens, MOST_TOKENS) if reproducible else tokens  # a token's bits are its own
    warps = rows_of_cta((at_once, x.shape[1]), x.dtype, router)
    if warps and count <= MOST_EXPERTS and top + shared <= MOST_TOP:
        for first in range(0, tokens, at_once):
            part = slice(first, min(first + at_once, tokens))
            few(q, x if at_once == tokens else plain(x)[part], router[0],
                Routing(found.experts[part], found.weights[part]), warps, norm, shared)
    elif tokens:
        q.launch(ROUTE.variant(), (-(-tokens // TOKENS), 1, 1), (32 * TOKENS, 1, 1),
                 logits(q, x, router, reproducible), found.experts, found.weights, tokens, count, top, int(norm),
                 int(shared), pdl=True)
    return found


def few(q: Queue, x: Array, router: Weight, out: Routing, warps: int, norm: bool, shared: bool) -> None:
    """One launch that multiplies and chooses; see `rows_of_cta`."""
    (tokens, width), count, rows = x.shape, router.shape[0], router.parts[0]
    block = tokens if tokens <= FEW else PASS * -(-tokens // (PASS * PARTS))
    at_once = 1 if tokens == 1 else 4 if tokens <= FEW else PASS
    v = ROUTER.variant(ACT=ACTS[x.dtype.name], WEIGHT=router.format, TOKENS=at_once)
    q.launch(v, (-(-count // warps), -(-tokens // block), 1), (32 * warps, 1, 1), plain(x), rows,
             q.empty((tokens, count), np.float32), out.experts, out.weights, tokens, count - shared, width,
             out.experts.shape[1] - shared, int(norm), int(shared), block,
             smem=warps * width * rows.dtype.itemsize, pdl=True)


def rows_of_cta(shape: tuple[int, ...], dtype: np.dtype[Any], router: Linear) -> int:
    """Rows of the router to a CTA of the one launch that does all; 0 where it takes more than one: many tokens, a
    router that is not one dense matrix, rows that are no multiple of 8 elements or too long."""
    tokens, width = shape
    if (not 0 < tokens <= MOST_TOKENS or dtype.name not in ACTS or len(router) != 1 or width % 8
            or router[0].format not in DENSE or router[0].shape[1] != width):
        return 0
    return min(MOST_WARPS, ROW_BUDGET // (width * router[0].parts[0].dtype.itemsize), router[0].shape[0])
