"""RMS norms (Zhang and Sennrich, "Root mean square layer normalization", 2019), with and without the residual sum."""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.types import Array

Floats = np.ndarray[Any, np.dtype[np.float32]]


def normalize(x: Floats, weight: Array, eps: float) -> Floats:
    """Float32 RMS norm along the last axis, not yet rounded."""
    mean = np.square(x).mean(axis=-1, keepdims=True)
    return np.asarray(x / np.sqrt(mean + np.float32(eps)) * np.asarray(weight, np.float32))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return normalize(np.asarray(x, np.float32), weight, eps).astype(x.dtype, copy=False)


def rms_norm_pair(a: Array, b: Array, weight_a: Array, weight_b: Array, eps: float) -> Array:
    return np.concatenate((np.asarray(rms_norm(a, weight_a, eps)), np.asarray(rms_norm(b, weight_b, eps))), axis=1)


@np.errstate(over="ignore", invalid="ignore")
def add_rms_norm(x: Array, residual: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    s = (np.asarray(x, np.float32) + np.asarray(residual, np.float32)).astype(x.dtype, copy=False)
    return s, rms_norm(s, weight, eps)
