"""Rotary embedding (Su et al., "RoFormer", 2021) in half-split order, head norms, and the append to the paged cache.

Letters: T tokens, n heads, D head dimension, d rotated dimensions.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.kv.spec import PAGE, PagedKV
from blackwell_infer.ops.batch import Batch
from blackwell_infer.ops.ref.norm import normalize
from blackwell_infer.types import Array

Floats = np.ndarray[Any, np.dtype[np.float32]]


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Turn the pairs (j, j + d/2) of x [T, n, D]; cos and sin are [T, 1, d/2]."""
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]), axis=-1)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def qkv_rope_append_(kv: PagedKV, qkv: Array, batch: Batch, rope_table: Array, heads: int,
                     q_norm: Array | None = None, k_norm: Array | None = None, eps: float = 0.0) -> Array:
    cache = np.asarray(kv.data)
    kv_heads, dim = cache.shape[2], cache.shape[4]
    raw = np.asarray(qkv)[:, : (heads + 2 * kv_heads) * dim].reshape(qkv.shape[0], heads + 2 * kv_heads, dim)
    real = np.asarray(batch.rows) >= 0
    x, rows, positions = raw[real], np.asarray(batch.rows)[real], np.asarray(batch.positions)[real]
    q, k = x[:, :heads].astype(np.float32), x[:, heads : heads + kv_heads].astype(np.float32)
    if q_norm is not None:
        q = normalize(q, q_norm, eps)
    if k_norm is not None:
        k = normalize(k, k_norm, eps)
    table = np.asarray(rope_table)[positions]  # [T, 2, d/2]
    cos, sin = table[:, None, 0], table[:, None, 1]
    out = np.zeros((raw.shape[0], heads, dim), raw.dtype)
    out[real] = rotate(q, cos, sin).astype(raw.dtype, copy=False)
    page, offset = np.asarray(batch.pages)[rows, positions // PAGE], positions % PAGE
    cache[page, 0, :, offset] = rotate(k, cos, sin).astype(raw.dtype, copy=False).astype(cache.dtype, copy=False)
    cache[page, 1, :, offset] = x[:, heads + kv_heads :].astype(cache.dtype, copy=False)
    return out
