"""GGUF blocks of 32 elements with one half-precision scale. Layouts: the GGUF specification of ggml's types."""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.quant.blocks import Blocks, half


def decode_q8_0(blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """34 bytes: f16 d, i8 q[32]; w = d q."""
    return half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


def decode_q4_0(blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """18 bytes: f16 d, 16 bytes of which byte j holds element j (low nibble) and j + 16 (high); w = d (q - 8)."""
    packed = blocks[:, 2:]
    q = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.int8) - np.int8(8)  # [n, 32]
    return half(blocks, 0) * q.astype(np.float32)


Q8_0 = Blocks("q8_0", 32, 34, decode_q8_0)
Q4_0 = Blocks("q4_0", 32, 18, decode_q4_0)
