"""GGUF "K" blocks: 256 elements, small integer scales under a half-precision one. Layouts: ggml's GGUF types."""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.quant.blocks import Blocks, half

_NIBBLES = np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
_PAIRS = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
_BITS = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)


def six_bit_scales(packed: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """uint8 [n, 12] -> scales and minima, float32 [n, 8] each, of 8 sub-blocks of 32 elements (Q4_K and Q5_K)."""
    low, mid, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minima = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _affine(blocks: np.ndarray[Any, Any], q: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """w = (d s) q - (dmin m) with q [n, 8, 32] and the 16-byte head that Q4_K and Q5_K share."""
    s, m = six_bit_scales(blocks[:, 4:16])
    scale = half(blocks, 0) * s                                                # [n, 8]
    shift = half(blocks, 2) * m                                                # [n, 8]
    w: np.ndarray[Any, Any] = scale[:, :, None] * q.astype(np.float32) - shift[:, :, None]
    return w.reshape(-1, 256)


def decode_q4_k(blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """144 bytes: f16 d, f16 dmin, 12 B scales, 128 B nibbles; 32 bytes hold sub-blocks 2g (low) and 2g + 1 (high)."""
    q = (blocks[:, 16:].reshape(-1, 4, 1, 32) >> _NIBBLES) & 15
    return _affine(blocks, q.reshape(-1, 8, 32))


def decode_q5_k(blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """176 bytes: as Q4_K with 32 bytes of fifth bits (bit j of byte l: element l of sub-block j) before the nibbles."""
    low = ((blocks[:, 48:].reshape(-1, 4, 1, 32) >> _NIBBLES) & 15).reshape(-1, 8, 32)
    high = (blocks[:, 16:48].reshape(-1, 1, 32) >> _BITS) & 1
    return _affine(blocks, low | (high << 4))


def decode_q6_k(blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """210 bytes: 128 B low nibbles, 64 B high bit pairs, i8 scales[16], f16 d; w = d s (q - 32).

    Half h (128 elements) has quarters k = 0..3 of 32: nibbles of bytes 64h + 32(k mod 2) (low if k < 2), pair k of
    byte 32h + l.
    """
    low = (blocks[:, :128].reshape(-1, 2, 1, 64) >> _NIBBLES) & 15             # [n, 2, 2, 64]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> _PAIRS) & 3            # [n, 2, 4, 32]
    q = (low.reshape(-1, 16, 16) | (high.reshape(-1, 16, 16) << 4)).astype(np.int8) - np.int8(32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    scale = half(blocks, 208) * scales                                         # [n, 16]
    return (scale[:, :, None] * q.astype(np.float32)).reshape(-1, 256)


Q4_K = Blocks("q4_k", 256, 144, decode_q4_k)
Q5_K = Blocks("q5_k", 256, 176, decode_q5_k)
Q6_K = Blocks("q6_k", 256, 210, decode_q6_k)
