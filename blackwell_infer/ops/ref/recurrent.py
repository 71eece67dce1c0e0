"""Gated DeltaNet (Yang, Kautz and Hatamizadeh, "Gated delta networks", 2024), token by token and in chunks.

The chunk form is that of "Parallelizing linear transformers with the delta rule over sequence length" (Yang et al.,
2024) with decays: within a chunk, what a token writes depends on what the tokens before it wrote through a unit lower
triangular matrix, which is inverted; chunks follow one another.
Letters: n tokens of one row, c chunks, L tokens of a chunk, nk key heads, nv value heads, dk and dv their widths.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.ops.batch import Batch, DeltaParams
from blackwell_infer.ops.ref.norm import normalize
from blackwell_infer.types import Array

FEW = 16
"""Most tokens of a row that go token by token"""
CHUNK = 64
UNIT_EPS = np.float32(1e-6)

Floats = np.ndarray[Any, np.dtype[np.float32]]
Values = np.ndarray[Any, Any]
Saved = list[tuple[int, Floats]]
"""(token, state after it)"""


class Mixed:
    """What enters the delta rule, float32: q, k [n, nv, dk], v [n, nv, dv], beta and g [n, nv]."""

    def __init__(self, q: Floats, k: Floats, v: Floats, beta: Floats, g: Floats) -> None:
        self.q, self.k, self.v, self.beta, self.g = q, k, v, beta, g


@np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore")
def gated_delta_(state: Recurrent, proj: Array, batch: Batch, params: DeltaParams) -> Array:
    x, convs, states = np.asarray(proj), np.asarray(state.conv), np.asarray(state.state)
    starts, source, targets = np.asarray(batch.starts), np.asarray(batch.state_from), np.asarray(batch.state_to)
    _, past, channels = convs.shape
    _, nv, dk, dv = states.shape
    out = np.zeros((x.shape[0], nv * dv), x.dtype)
    for row in range(len(starts) - 1):
        first, last = int(starts[row]), int(starts[row + 1])
        if first == last:
            continue
        part, slot, wanted = x[first:last], int(source[row]), targets[first:last]
        history = convs[slot] if slot >= 0 else np.zeros((past, channels), convs.dtype)
        inputs = np.concatenate((history, part[:, :channels].astype(convs.dtype, copy=False)))
        before = states[slot].astype(np.float32) if slot >= 0 else np.zeros((nv, dk, dv), np.float32)
        mixed = mix(convolve(inputs, np.asarray(params.conv, np.float32)),
                    part[:, channels + nv * dv :].astype(np.float32), params, (nv, dk, dv))
        ends = [t for t in range(last - first) if wanted[t] >= 0]
        o, saved = (one_by_one(mixed, before, ends, states.dtype) if last - first <= FEW
                    else in_chunks(mixed, before, ends))
        z = part[:, channels : channels + nv * dv].astype(np.float32).reshape(o.shape)
        y = normalize(o, params.norm, params.eps) * silu(z)
        out[first:last] = y.reshape(last - first, nv * dv)
        for t, after in saved:
            convs[wanted[t]] = inputs[t + 1 : t + 1 + past]
            states[wanted[t]] = after
    return out


def silu(x: Floats) -> Floats:
    return np.asarray(x / (np.float32(1) + np.exp(-x)))


def convolve(inputs: Values, weight: Floats) -> Floats:
    """inputs [width - 1 + n, channels], weight [channels, width] -> silu of the convolution, [n, channels]."""
    x, width = inputs.astype(np.float32), weight.shape[1]
    n = len(x) - width + 1
    total = x[:n] * weight[:, 0]
    for tap in range(1, width):
        total += x[tap : tap + n] * weight[:, tap]
    return silu(total)


def mix(u: Floats, gates: Floats, params: DeltaParams, shape: tuple[int, int, int]) -> Mixed:
    """u [n, channels] after the convolution, gates [n, 2 nv] (b, a); shape is (nv, dk, dv)."""
    (nv, dk, dv), nk, n = shape, params.key_heads, len(u)
    heads = np.arange(nv) % nk if params.tiled else np.arange(nv) // (nv // nk)
    q, k = unit(u[:, : nk * dk].reshape(n, nk, dk)), unit(u[:, nk * dk : 2 * nk * dk].reshape(n, nk, dk))
    b, a = gates[:, :nv], gates[:, nv:] + np.asarray(params.dt_bias, np.float32)
    g = np.asarray(params.decay, np.float32) * np.logaddexp(np.float32(0), a)
    return Mixed((q * np.float32(dk**-0.5))[:, heads], k[:, heads], u[:, 2 * nk * dk :].reshape(n, nv, dv),
                 np.float32(1) / (np.float32(1) + np.exp(-b)), g)


def unit(x: Floats) -> Floats:
    """Heads [..., dk] of length 1."""
    return np.asarray(x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True) + UNIT_EPS))


def one_by_one(m: Mixed, before: Floats, ends: list[int], stored: np.dtype[Any]) -> tuple[Floats, Saved]:
    """o [n, nv, dv], and the states after tokens `ends`; a state is rounded to `stored` after every token."""
    s, saved, o = before, [], np.empty(m.v.shape, np.float32)
    decay = np.exp(m.g)[..., None, None]
    for t in range(len(o)):
        s = s * decay[t]
        d = (m.v[t] - np.matmul(m.k[t][:, None], s)[:, 0]) * m.beta[t][:, None]
        s += m.k[t][:, :, None] * d[:, None]
        o[t] = np.matmul(m.q[t][:, None], s)[:, 0]
        s = s.astype(stored).astype(np.float32, copy=False)
        if t in ends:
            saved.append((t, s.copy()))
    return o, saved


def in_chunks(m: Mixed, before: Floats, ends: list[int]) -> tuple[Floats, Saved]:
    """The same in chunks; decays between two tokens of a chunk are differences of float64 sums."""
    n, nv, dv = m.v.shape
    count = -(-n // CHUNK)

    def chunked(x: Floats) -> Floats:
        """[n, nv, ...] -> [nv, c, L, ...]; tokens past the last are zeros, which change no state."""
        padded = np.concatenate((x, np.zeros((count * CHUNK - n, *x.shape[1:]), np.float32)))
        return padded.reshape(count, CHUNK, *x.shape[1:]).swapaxes(1, 2).swapaxes(0, 1)

    q, k, v, beta = chunked(m.q), chunked(m.k), chunked(m.v), chunked(m.beta)[..., None]
    # e^-128 is 0 in float32; without infinities differences of sums stay numbers.
    sums = np.maximum(chunked(m.g), np.float32(-128)).astype(np.float64).cumsum(axis=2)  # [nv, c, L]
    seen = np.tri(CHUNK, dtype=np.bool_)
    decays = np.where(seen, np.exp(np.where(seen, sums[..., :, None] - sums[..., None, :], 0)), 0).astype(np.float32)
    since = np.exp(sums).astype(np.float32)[..., None]
    mutual = np.where(np.tri(CHUNK, k=-1, dtype=np.bool_), np.matmul(k * beta, k.swapaxes(-1, -2)) * decays,
                      np.float32(0))
    inverse = inverted(mutual)
    written, read = np.matmul(inverse, v * beta), np.matmul(inverse, k * beta * since)
    scores = np.where(seen, np.matmul(q, k.swapaxes(-1, -2)) * decays, np.float32(0))
    s, saved, o = before, [], np.empty((nv, count, CHUNK, dv), np.float32)
    for c in range(count):
        d = written[:, c] - np.matmul(read[:, c], s)
        o[:, c] = np.matmul(q[:, c] * since[:, c], s) + np.matmul(scores[:, c], d)
        base, after = s, c * CHUNK
        for t in sorted({*(e for e in ends if after <= e < after + CHUNK), after + CHUNK - 1}):
            j = t - after
            left = np.exp(sums[:, c, j : j + 1] - sums[:, c, : j + 1]).astype(np.float32)[..., None]
            s = base * since[:, c, j : j + 1] + np.matmul((k[:, c, : j + 1] * left).swapaxes(-1, -2), d[:, : j + 1])
            if t in ends:
                saved.append((t, s))
    return o.transpose(1, 2, 0, 3).reshape(count * CHUNK, nv, dv)[:n], saved


def inverted(lower: Floats) -> Floats:
    """Inverse of I + lower, strictly lower triangular matrices [..., L, L], by blocks: of two inverted neighbours X and
    Y with Z below X and left of Y, the inverse has -Y Z X there."""
    size = lower.shape[-1]
    result = np.zeros_like(lower) + np.eye(size, dtype=np.float32)
    half = 1
    while half < size:
        for at in range(0, size, 2 * half):
            x, y = slice(at, at + half), slice(at + half, at + 2 * half)
            result[..., y, x] = -np.matmul(np.matmul(result[..., y, y], lower[..., y, x]), result[..., x, x])
        half *= 2
    return result
