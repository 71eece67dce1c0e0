"""Launcher of ptx/moe/route.cu: which experts each token goes to. Nothing of it is read on the host."""
from __future__ import annotations

import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import moved
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.cuda.linear import logits
from blackwell_infer.quant.format import Linear
from blackwell_infer.types import Array

TOKENS = 4
"""tokens of a CTA"""

ROUTE = Kernel("moe/route.cu", "moe_route", (
    Param("logits", "in", "float32"), Param("experts", "out", "int32"), Param("weights", "out", "float32"),
    Param("T", "i32"), Param("E", "i32"), Param("top", "i32"), Param("norm", "i32")), cost=moved)
KERNELS = (ROUTE,)


def route(q: Queue, x: Array, router: Linear, top: int, norm: bool) -> Routing:
    """x [T, H] -> experts and weights [T, top]."""
    tokens, count = x.shape[0], sum(block.shape[0] for block in router)
    if not 1 <= top <= count:
        raise KernelError(f"route: top {top} of {count} experts; it must lie between 1 and their number")
    found = Routing(q.empty((tokens, top), np.int32), q.empty((tokens, top), np.float32))
    if tokens:
        q.launch(ROUTE.variant(), (-(-tokens // TOKENS), 1, 1), (32 * TOKENS, 1, 1), logits(q, x, router),
                 found.experts, found.weights, tokens, count, top, int(norm), pdl=True)
    return found
