"""Gates: of the MLP, of attention's result, of the expert that all tokens share; and the choice of rows."""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.types import Array


@np.errstate(over="ignore", invalid="ignore", under="ignore")
def swiglu(gate_up: Array) -> Array:
    both = np.asarray(gate_up, np.float32)
    width = both.shape[1] // 2
    gate, up = both[:, :width], both[:, width:]  # [T, I] each
    y: np.ndarray[Any, Any] = gate / (np.float32(1) + np.exp(-gate)) * up
    return y.astype(gate_up.dtype, copy=False)


@np.errstate(over="ignore", invalid="ignore", under="ignore")
def sigmoid_gate(x: Array, gates: Array) -> Array:
    z = np.asarray(gates, np.float32)[:, gates.shape[1] - x.shape[1] :]
    y: np.ndarray[Any, Any] = np.asarray(x, np.float32) / (np.float32(1) + np.exp(-z))
    return y.astype(x.dtype, copy=False)


@np.errstate(over="ignore", invalid="ignore", under="ignore")
def add_gated(x: Array, y: Array, h: Array, gate: Array) -> Array:
    z = np.sum(np.asarray(h, np.float32) * np.asarray(gate), axis=1, keepdims=True)
    out = np.asarray(x, np.float32) + np.asarray(y, np.float32) / (np.float32(1) + np.exp(-z))
    return np.asarray(out.astype(x.dtype, copy=False))


def take_rows(x: Array, index: Array, out: Array | None = None) -> Array:
    found = np.asarray(np.asarray(x)[np.asarray(index)])
    if out is None:
        return found
    np.asarray(out)[...] = found
    return out
