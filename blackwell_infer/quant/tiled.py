"""The order in which block-scaled matrix products read scales: tiles of 128 rows by 4 groups, 512 bytes each.

Source: cuBLAS documentation, "1D block scaling factors layout". Byte (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4 of
tile (r // 128, c // 4) is the scale of row r and group c; tiles of a row of tiles follow each other. Rows and groups
that fill up the last tiles are zero.
"""
from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from blackwell_infer.quant.format import Weight

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

TILED: Mapping[str, str] = MappingProxyType({"nvfp4": "nvfp4_tiled", "mxfp8": "mxfp8_tiled"})
"""Formats whose scales may be put into tiles, and what they are then called; all other parts stay as they are."""


def tiled_size(rows: int, groups: int) -> int:
    """Bytes of the scales of a matrix in tiles."""
    return -(-rows // 128) * -(-groups // 4) * 512


def to_tiles(scales: Bytes) -> Bytes:
    """uint8 [R, C] -> uint8 [tiled_size(R, C)]."""
    rows, groups = scales.shape
    padded = np.pad(scales, ((0, -rows % 128), (0, -groups % 4)))
    return padded.reshape(-(-rows // 128), 4, 32, -(-groups // 4), 4).transpose(0, 3, 2, 1, 4).reshape(-1)


def from_tiles(tiles: Bytes, rows: int, groups: int) -> Bytes:
    """The inverse of `to_tiles`."""
    blocks = tiles.reshape(-(-rows // 128), -(-groups // 4), 32, 4, 4).transpose(0, 3, 2, 1, 4)
    return np.ascontiguousarray(blocks.reshape(-(-rows // 128) * 128, -1)[:rows, :groups])


def tiled(w: Weight) -> Weight:
    """A host weight with its scales in tiles, for `ops.linear_quantized`; formats without tiles stay as they are."""
    if w.format not in TILED:
        return w
    codes, scales, *rest = (np.asarray(part) for part in w.parts)
    return Weight(TILED[w.format], w.shape, (codes, to_tiles(scales), *rest))


def untiled(w: Weight) -> Weight:
    """The inverse of `tiled`."""
    formats = {name: form for form, name in TILED.items()}
    if w.format not in formats:
        return w
    codes, scales, *rest = (np.asarray(part) for part in w.parts)
    groups = w.shape[1] // (16 if w.format == TILED["nvfp4"] else 32)
    return Weight(formats[w.format], w.shape, (codes, from_tiles(scales, w.shape[0], groups), *rest))
