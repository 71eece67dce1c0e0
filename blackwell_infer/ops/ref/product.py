"""What the products of `linear.py` and `quantize.py` share: types of activations, and a product of float32 matrices."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
SMALL = 16
"""Up to this many rows are multiplied one by one, so that a row's bits do not depend on the rows beside it."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


def product(x: Floats, w: Floats) -> Floats:
    """x [T, K] times w [N, K] transposed -> [T, N].

    BLAS picks its summation order by the number of rows, so few rows go through one matrix-vector product each.
    """
    if x.shape[0] <= SMALL:
        return np.asarray(np.matmul(x[:, None, :], w.T)[:, 0])
    return np.asarray(np.matmul(x, w.T))
