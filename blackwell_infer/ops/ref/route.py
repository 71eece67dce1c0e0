"""The choice of experts: softmax over all of them, the most probable first."""
from __future__ import annotations

import numpy as np

from blackwell_infer.errors import KernelError
from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.ref.linear import logits
from blackwell_infer.quant.format import Linear
from blackwell_infer.types import Array


@np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore")
def route(x: Array, router: Linear, top: int, norm: bool, shared: bool = False) -> Routing:
    """Ordered by logits, not by probabilities: the same order, but rounding of the softmax cannot make ties in it."""
    count = sum(block.shape[0] for block in router) - shared
    if not 1 <= top <= count:
        raise KernelError(f"route: top {top} of {count} experts; it must lie between 1 and their number")
    every = np.asarray(logits(x, router))
    z = every[:, :count]  # [T, E]
    keys = np.where(np.isnan(z), np.float32(-np.inf), z)
    chosen = np.argsort(-keys, axis=1, kind="stable")[:, :top]
    mass = np.exp(z - z.max(axis=1, keepdims=True))
    weights = (mass / mass.sum(axis=1, keepdims=True))[np.arange(len(z))[:, None], chosen]
    if norm:
        weights = weights / weights.sum(axis=1, keepdims=True)
    if shared:
        chosen = np.concatenate((chosen, np.full_like(chosen[:, :1], count)), axis=1)
        weights = np.concatenate((weights, 1 / (1 + np.exp(-every[:, count:]))), axis=1)
    return Routing(chosen.astype(np.int32), weights.astype(np.float32))
