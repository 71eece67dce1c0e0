"""The gated activation of the MLP, and the choice of rows."""
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


def take_rows(x: Array, index: Array) -> Array:
    return np.asarray(np.asarray(x)[np.asarray(index)])
