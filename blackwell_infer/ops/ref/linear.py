"""Embedding lookup and matrix products of dense and quantised weights: dequantise, multiply in float32, round once.

Letters: T tokens, K inputs, N outputs, V vocabulary, H width.
"""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Linear, Weight
from blackwell_infer.quant.fragments import fragmented, plain
from blackwell_infer.types import Array

DTYPES = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
SMALL = 16
"""Up to this many rows are multiplied one by one, so that a row's bits do not depend on the rows beside it."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


def arrange(w: Weight, out: Array | None = None) -> Weight:
    found = fragmented(w)
    if out is None:
        return found
    np.asarray(out)[...] = found.parts[0]
    return Weight(found.format, found.shape, (out,))


def dense(w: Weight) -> Floats:
    """A matrix of any format and order, float32 [N, K]."""
    stored = plain(w)
    return np.asarray(FORMATS[stored.format].dequantize(stored))


def embed(table: Weight, ids: Array, dtype: str) -> Array:
    wanted, table = np.asarray(ids), plain(table)
    inside = (wanted >= 0) & (wanted < table.shape[0])
    found, form = np.where(inside, wanted, 0), FORMATS[table.format]
    alone = form.joins(((1, table.shape[1]), (1, table.shape[1])))  # rows do not share scales
    rows = form.dequantize(form.take_rows(table, found)) if alone else form.dequantize(table)[found]
    values = np.where(inside[:, None], rows, np.float32(0))  # [T, H]
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(DTYPES[dtype])


def product(x: Floats, w: Floats) -> Floats:
    """x [T, K] times w [N, K] transposed -> [T, N].

    BLAS picks its summation order by the number of rows, so few rows go through one matrix-vector product each.
    """
    if x.shape[0] <= SMALL:
        return np.asarray(np.matmul(x[:, None, :], w.T)[:, 0])
    return np.asarray(np.matmul(x, w.T))


@np.errstate(over="ignore", invalid="ignore")
def blocks(x: Array, w: Linear) -> Floats:
    """Float32 products with every row block, side by side."""
    x32 = np.ascontiguousarray(x, dtype=np.float32)
    outs = [product(x32, dense(b)) for b in w]
    return outs[0] if len(outs) == 1 else np.concatenate(outs, axis=1)


@np.errstate(over="ignore", invalid="ignore")
def linear(x: Array, w: Linear, bias: Array | None = None) -> Array:
    y = blocks(x, w)
    if bias is not None:
        y = y + np.asarray(bias)
    return y.astype(x.dtype, copy=False)


def logits(x: Array, w: Linear) -> Array:
    return blocks(x, w)
