"""Weights that meet quantised activations, and the order in which block-scaled matrix products read scales: tiles of
128 rows by 4 groups, 512 bytes each.

Source: cuBLAS documentation, "1D block scaling factors layout". Byte (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4 of
tile (r // 128, c // 4) is the scale of row r and group c; tiles of a row of tiles follow each other. Rows and groups
that fill up the last tiles are zero.
"""
from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from blackwell_infer.quant.format import PAIRED, QUANTISES, Weight

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

TILED: Mapping[str, str] = MappingProxyType({form: PAIRED[form] for form in ("nvfp4", "mxfp8")})
"""Formats whose scales are put into tiles where they meet quantised activations; all other parts stay as they are."""
MULTIPLES: Mapping[str, int] = MappingProxyType({"nvfp4": 64, "mxfp8": 32, "fp8": 16, "fp8_block": 16})
"""What the rows of such a weight must be a multiple of"""


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


def fits(form: str, cols: int) -> bool:
    """Whether activations of this format can meet a matrix with rows of `cols` elements."""
    return cols % MULTIPLES[form] == 0


def paired(w: Weight) -> Weight:
    """A host weight as it meets activations in codes of its own kind; one that cannot, or does already, as it is."""
    if w.format not in PAIRED or not fits(w.format, w.shape[1]):
        return w
    parts = tuple(np.asarray(part) for part in w.parts)
    if w.format in TILED:
        parts = (parts[0], to_tiles(parts[1]), *parts[2:])
    return Weight(PAIRED[w.format], w.shape, parts)


def unpaired(w: Weight) -> Weight:
    """The inverse of `paired`."""
    form = QUANTISES.get(w.format)
    if form is None:
        return w
    parts = tuple(np.asarray(part) for part in w.parts)
    if form in TILED:
        parts = (parts[0], from_tiles(parts[1], w.shape[0], w.shape[1] // (16 if form == "nvfp4" else 32)), *parts[2:])
    return Weight(form, w.shape, parts)
