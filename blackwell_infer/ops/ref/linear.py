"""Embedding lookup and matrix products of dense and quantised weights: dequantise, multiply in float32, round once.

Letters: T tokens, K inputs, N outputs, V vocabulary, H width.
"""
from __future__ import annotations

import numpy as np

from blackwell_infer.ops.ref.product import DTYPES, Floats, product
from blackwell_infer.ops.ref.quantize import dequantize, matrix, quantize
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import QUANTISES, Linear, Weight, input_scale
from blackwell_infer.quant.fragments import fragmented, plain
from blackwell_infer.types import Array


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


@np.errstate(over="ignore", invalid="ignore")
def blocks(x: Array, w: Linear) -> Floats:
    """Float32 products with every row block, side by side."""
    x32 = np.ascontiguousarray(x, dtype=np.float32)
    outs = [product(*operands(x32, b)) for b in w]
    return outs[0] if len(outs) == 1 else np.concatenate(outs, axis=1)


def operands(x: Floats, w: Weight) -> tuple[Floats, Floats]:
    """What is multiplied: x and w as float32, x by way of its codes where w asks for that."""
    form = QUANTISES.get(w.format)
    if form is None:
        return x, dense(w)
    return dequantize(quantize(x, form, input_scale(w))), matrix(form, w)


@np.errstate(over="ignore", invalid="ignore")
def linear(x: Array, w: Linear, bias: Array | None = None) -> Array:
    y = blocks(x, w)
    if bias is not None:
        y = y + np.asarray(bias)
    return y.astype(x.dtype, copy=False)


def logits(x: Array, w: Linear) -> Array:
    return blocks(x, w)
