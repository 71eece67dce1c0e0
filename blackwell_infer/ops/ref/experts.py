"""The MLPs of routed experts: each expert's rows are dequantised when a token wants them, and forgotten.

Letters: T tokens, S experts per token, E experts, H width, I inner width.
"""
from __future__ import annotations

import numpy as np

from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.ref.activation import swiglu
from blackwell_infer.ops.ref.linear import dense
from blackwell_infer.ops.ref.product import Floats, product
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Experts, Weight
from blackwell_infer.quant.fragments import SUFFIX
from blackwell_infer.types import Array


def expert(stack: Experts, index: int) -> Floats:
    """The matrix of one expert, float32 [N, K]."""
    w, n = stack.weight, stack.rows
    if w.format.endswith(SUFFIX):
        tiles = np.asarray(w.parts[0]).reshape(stack.count, -1)[index]
        return dense(Weight(w.format, (n, w.shape[1]), (tiles,)))
    if w.format == "f32":
        return np.asarray(w.parts[0])[index * n : (index + 1) * n]
    form = FORMATS[w.format]
    return form.dequantize(form.take_rows(w, np.arange(index * n, (index + 1) * n)))


@np.errstate(over="ignore", invalid="ignore", under="ignore")
def experts(x: Array, routing: Routing, gate_up: tuple[Experts, ...], down: Experts) -> Array:
    ids, weights = np.asarray(routing.experts), np.asarray(routing.weights)
    (tokens, top), flat = ids.shape, ids.reshape(-1)
    x32 = np.ascontiguousarray(x, dtype=np.float32)
    outs = np.zeros((tokens * top, down.rows), np.float32)  # [T S, H]
    for e in sorted(set(flat.tolist())):
        pairs = np.flatnonzero(flat == e)
        rows = x32[pairs // top]
        parts = [product(rows, expert(part, e)) for part in gate_up]
        both = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]  # [n, 2 I]
        inner = np.asarray(np.asarray(swiglu(both)).astype(x.dtype, copy=False), np.float32)
        outs[pairs] = product(inner, expert(down, e))
    y = np.zeros((tokens, down.rows), np.float32)
    for slot in range(top):
        y = y + weights[:, slot, None] * outs[slot::top]
    return y.astype(x.dtype, copy=False)
