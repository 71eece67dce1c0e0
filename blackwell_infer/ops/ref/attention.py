"""Causal attention over paged keys and values, row by row.

Keys are read in spans of a fixed length that start at multiples of it, and summed span after span; up to `FEW` tokens
of a row are multiplied one by one. So a token's bits depend neither on its neighbours nor on how a prompt was cut.
Letters: n tokens of one row, t tiles of query tokens, g query heads per KV head, S spans, D head dimension.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.kv.spec import PAGE, PagedKV
from blackwell_infer.ops.batch import Batch
from blackwell_infer.ops.ref.rope import qkv_rope_append_
from blackwell_infer.types import Array

SPAN = 4 * PAGE
FEW = 16
TILE = 32
"""Query tokens multiplied together when a row brings more than `FEW`"""
SCORES = 1 << 23
"""Scores held at once; longer prompts are walked in blocks of tokens"""

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int32]]


@np.errstate(over="ignore", invalid="ignore", under="ignore")
def attend(q: Array, kv: PagedKV, batch: Batch, scale: float, window: int, softcap: float = 0.0) -> Array:
    queries, cache = np.asarray(q), np.asarray(kv.data)
    starts, positions, pages = np.asarray(batch.starts), np.asarray(batch.positions), np.asarray(batch.pages)
    tokens, heads, dim = queries.shape
    out = np.zeros((tokens, heads, dim), queries.dtype)
    for row in range(len(starts) - 1):
        first, last = int(starts[row]), int(starts[row + 1])
        tile = 1 if last - first <= FEW else TILE
        step = tile
        if last > first:
            keys = int(positions[last - 1]) + 1
            step = max(SCORES // (heads * (keys + SPAN)) // tile, 1) * tile
        for low in range(first, last, step):
            part = slice(low, min(low + step, last))
            out[part] = block(queries[part], cache, pages[row], positions[part], scale, window, softcap, tile)
    return out.reshape(tokens, heads * dim)


def attention_(kv: PagedKV, qkv: Array, batch: Batch, rope_table: Array, heads: int, scale: float, window: int,
               softcap: float = 0.0, q_norm: Array | None = None, k_norm: Array | None = None,
               eps: float = 0.0) -> Array:
    q = qkv_rope_append_(kv, qkv, batch, rope_table, heads, q_norm, k_norm, eps)
    return attend(q, kv, batch, scale, window, softcap)


def gather(cache: np.ndarray[Any, Any], pages: Ints, spans: tuple[int, int]) -> tuple[Floats, Floats]:
    """Keys and values [kv_heads, S * SPAN, D] float32 of spans first..last; pages beyond the table repeat page 0."""
    kv_heads, dim = cache.shape[2], cache.shape[4]
    wanted = pages[spans[0] * (SPAN // PAGE) : spans[1] * (SPAN // PAGE)]
    missing = (spans[1] - spans[0]) * (SPAN // PAGE) - len(wanted)
    if missing:
        wanted = np.concatenate((wanted, np.zeros(missing, wanted.dtype)))
    both = cache[wanted].astype(np.float32, copy=False).transpose(1, 2, 0, 3, 4).reshape(2, kv_heads, -1, dim)
    return both[0], both[1]


def block(q: np.ndarray[Any, Any], cache: np.ndarray[Any, Any], pages: Ints, positions: Ints, scale: float,
          window: int, softcap: float, tile: int) -> Floats:
    """Tokens q [n, heads, D] of one row, at consecutive positions [n], against all keys they see -> [n, heads, D]."""
    low = max(int(positions[0]) - window + 1, 0) if window > 0 else 0
    high = int(positions[-1]) + 1
    spans = (low // SPAN, -(-high // SPAN))
    k, v = gather(cache, pages, spans)
    base = spans[0] * SPAN
    v[:, : low - base], v[:, high - base :] = 0, 0
    if len(q) > 1 and not np.isfinite(v).all():
        # A weight of zero times NaN is NaN: every token must meet only the values that it sees.
        return np.concatenate([block(q[i : i + 1], cache, pages, positions[i : i + 1], scale, window, softcap, 1)
                               for i in range(len(q))])
    return softmax_product(q.astype(np.float32), k, v, positions, base, scale, window, softcap, tile)


def softmax_product(q: Floats, k: Floats, v: Floats, positions: Ints, base: int, scale: float, window: int,
                    softcap: float, tile: int) -> Floats:
    """Masked softmax(q k) v with keys [kv_heads, S * SPAN, D] that start at position `base`."""
    n, heads, dim = q.shape
    kv_heads, spans, tiles = k.shape[0], k.shape[1] // SPAN, -(-n // tile)
    group = heads // kv_heads
    if tiles * tile > n:
        q = np.concatenate((q, np.zeros((tiles * tile - n, heads, dim), np.float32)))
        positions = np.concatenate((positions, np.repeat(positions[-1:], tiles * tile - n)))
    # [kv_heads, t, 1, tile * g, D] times [kv_heads, 1, S, D, SPAN]
    qt = q.reshape(tiles, tile, kv_heads, group, dim).transpose(2, 0, 1, 3, 4).reshape(kv_heads, tiles, 1, -1, dim)
    kt = k.reshape(kv_heads, 1, spans, SPAN, dim)
    scores = np.matmul(qt, kt.swapaxes(-1, -2)) * np.float32(scale)
    if softcap:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    scores = scores.reshape(kv_heads, tiles, spans, tile, group, SPAN)
    distance = positions.reshape(tiles, 1, tile, 1) - (base + np.arange(spans * SPAN)).reshape(spans, 1, SPAN)
    seen = (distance >= 0) & (distance < window) if window > 0 else distance >= 0
    scores = np.where(seen[:, :, :, None, :], scores, np.float32(-np.inf))
    largest = scores.max(axis=(2, 5), keepdims=True)
    weights = np.exp(scores - largest)
    sums = weights.sum(axis=5)  # [kv_heads, t, S, tile, g]
    parts = np.matmul(weights.reshape(kv_heads, tiles, spans, tile * group, SPAN),
                      v.reshape(kv_heads, 1, spans, SPAN, dim))
    total, acc = sums[:, :, 0].copy(), parts[:, :, 0].copy()
    for s in range(1, spans):
        total += sums[:, :, s]
        acc += parts[:, :, s]
    out = acc.reshape(kv_heads, tiles, tile, group, dim) / total[..., None]
    return np.asarray(out.transpose(1, 2, 0, 3, 4).reshape(tiles * tile, heads, dim)[:n])
