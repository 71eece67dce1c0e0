"""float32 -> GGUF blocks, for tools and tests. The engine itself never re-encodes a user's weights.

Q8_0 and Q4_0 round as ggml's reference does. The K formats use a plain minimum/maximum fit per sub-block: sound, and a
little less accurate than an encoder that searches.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Weight


def encode(x: np.ndarray[Any, Any], name: str) -> Weight:
    """Encode float [rows, cols] in format `name` of `ENCODERS`; cols must be a multiple of the format's block."""
    form = FORMATS[name]
    rows, cols = x.shape
    if cols % form.block:
        raise ValueError(f"{cols} columns are no multiple of the {form.block} elements of a {name} block")
    step = max(1, (1 << 22) // max(cols, 1))
    out = np.empty((rows, cols // form.block * form.block_bytes), np.uint8)
    for start in range(0, rows, step):
        blocks = np.asarray(x[start:start + step], np.float32).reshape(-1, form.block)
        out[start:start + step] = ENCODERS[name](blocks).reshape(-1, out.shape[1])
    return form.read(out.reshape(-1), (rows, cols))


def _half_bytes(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    halves: np.ndarray[Any, Any] = x.reshape(-1, 1).astype("<f2")
    out: np.ndarray[Any, Any] = halves.view(np.uint8)                          # [n, 2]
    return out


def _inverse(d: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    out: np.ndarray[Any, Any] = np.divide(1, d, out=np.zeros_like(d), where=d != 0)
    return out


def _round(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Nearest integer, halves away from zero (C's roundf)."""
    floor = np.floor(np.abs(x))
    rounded: np.ndarray[Any, Any] = np.sign(x) * (floor + np.floor(2 * (np.abs(x) - floor)))
    return rounded


def encode_q8_0(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 [n, 32] -> uint8 [n, 34]."""
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    q = _round(x * _inverse(d)).astype(np.int8).view(np.uint8)
    return np.concatenate([_half_bytes(d), q], axis=1)


def encode_q4_0(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 [n, 32] -> uint8 [n, 18]. The element of largest magnitude becomes -8."""
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    d = peak / np.float32(-8)
    # ggml computes x / d in single and adds the rounding offset in a wider type; double makes the cut exact.
    q = np.trunc(x.astype(np.float64) * _inverse(d).astype(np.float64) + 8.5).astype(np.uint8).clip(0, 15)
    return np.concatenate([_half_bytes(d), q[:, :16] | (q[:, 16:] << 4)], axis=1)


def _affine(x: np.ndarray[Any, Any], top: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The 16-byte head of Q4_K and Q5_K, and integers 0..top [n, 8, 32]."""
    sub = x.reshape(-1, 8, 32)
    low = np.minimum(sub.min(axis=2), 0)                                       # [n, 8]
    step = (np.maximum(sub.max(axis=2), 0) - low) / top
    d = (step.max(axis=1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    dmin = (-low.min(axis=1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    s = _round(step * _inverse(d)).clip(0, 63).astype(np.uint8)
    m = _round(-low * _inverse(dmin)).clip(0, 63).astype(np.uint8)
    q = _round((sub + (dmin * m)[:, :, None]) * _inverse(d * s)[:, :, None]).clip(0, top).astype(np.uint8)
    packed = np.concatenate([
        s[:, :4] | ((s[:, 4:] >> 4) << 6), m[:, :4] | ((m[:, 4:] >> 4) << 6), (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4),
    ], axis=1)
    return np.concatenate([_half_bytes(d), _half_bytes(dmin), packed], axis=1), q


def _nibbles(q: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[n, 8, 32] values below 16 -> uint8 [n, 128]: sub-block 2g in the low nibbles, 2g + 1 in the high ones."""
    pairs = q.reshape(-1, 4, 2, 32)
    packed: np.ndarray[Any, Any] = pairs[:, :, 0] | (pairs[:, :, 1] << 4)
    return packed.reshape(-1, 128)


def encode_q4_k(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 [n, 256] -> uint8 [n, 144]."""
    head, q = _affine(x, 15)
    return np.concatenate([head, _nibbles(q)], axis=1)


def encode_q5_k(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 [n, 256] -> uint8 [n, 176]."""
    head, q = _affine(x, 31)
    fifth = np.bitwise_or.reduce((q >> 4) << np.arange(8, dtype=np.uint8)[None, :, None], axis=1)
    return np.concatenate([head, fifth, _nibbles(q & 15)], axis=1)


def encode_q6_k(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 [n, 256] -> uint8 [n, 210]."""
    sub = x.reshape(-1, 16, 16)
    peak = np.take_along_axis(sub, np.abs(sub).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    step = peak / -32                                                          # [n, 16]
    largest = np.take_along_axis(step, np.abs(step).argmax(axis=1)[:, None], axis=1)
    d = (largest / -128).astype(np.float16).astype(np.float32)                 # [n, 1]
    s = _round(step * _inverse(d)).clip(-128, 127).astype(np.int8)
    q = (_round(sub * _inverse(d * s)[:, :, None]).clip(-32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = ((q[:, :, :2] & 15) | ((q[:, :, 2:] & 15) << 4)).reshape(-1, 128)
    high = np.bitwise_or.reduce((q >> 4) << np.array([0, 2, 4, 6], np.uint8)[None, None, :, None], axis=2)
    return np.concatenate([low, high.reshape(-1, 64), s.view(np.uint8), _half_bytes(d)], axis=1)


ENCODERS: Mapping[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = MappingProxyType({
    "q8_0": encode_q8_0, "q4_0": encode_q4_0, "q4_k": encode_q4_k, "q5_k": encode_q5_k, "q6_k": encode_q6_k,
})
