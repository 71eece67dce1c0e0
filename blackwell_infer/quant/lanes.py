"""Codes of tiles of 16 rows and 256 columns, in the order in which the lanes of a warp read them."""
from __future__ import annotations

from typing import Any

import numpy as np

Values = np.ndarray[Any, Any]

ROWS, COLS, LANES = 16, 256, 32


def by_lane(codes: Values) -> Values:
    """Codes [R, 16, C, 256] -> uint32 [R, C, chunk, g, t, i, row // 8, e // 2, e % 2]."""
    r, _, c, _ = codes.shape
    x = codes.reshape(r, 2, 8, c, 4, 4, 4, 2, 2).astype(np.uint32)             # R h g C chunk i t pair odd
    return x.transpose(0, 3, 4, 2, 6, 5, 1, 7, 8)


def from_lanes(x: Values) -> Values:
    """The inverse of `by_lane`, uint8."""
    codes: Values = x.transpose(0, 6, 3, 1, 2, 5, 4, 7, 8).astype(np.uint8).reshape(len(x), ROWS, x.shape[1], COLS)
    return codes


def joined(x: Values) -> Values:
    """What `by_lane` gives, every code at its place in a word, as words: -> uint8 [R, C, 2048]."""
    words = np.bitwise_or.reduce(x.reshape(*x.shape[:6], 8), axis=-1)
    return np.ascontiguousarray(words.astype("<u4")).view(np.uint8).reshape(*x.shape[:2], 2048)


def words_of(packed: Values) -> Values:
    """The words of `joined`, in its shape with single last axes."""
    r, c, _ = packed.shape
    return np.ascontiguousarray(packed).view("<u4").reshape(r, c, 4, 8, 4, 4, 1, 1, 1)


BIT = np.arange(2, dtype=np.uint32)
NIBBLE_AT = 4 * BIT[:, None, None] + 8 * BIT[:, None] + 16 * BIT
BYTE_AT = 8 * (1 - BIT[:, None, None]) + 16 * BIT + 0 * BIT[:, None]
"""Bit of a code in its word, and of the byte that it shares with another E2M1 code, by [row // 8][e // 2][e % 2]"""


def spread(codes: Values) -> Values:
    """Nibbles [R, 16, C, 256] -> uint8 [R, C, 2048]: 4 chunks x 32 lanes x 16 bytes."""
    return joined(by_lane(codes) << NIBBLE_AT)


def gather(packed: Values) -> Values:
    """The inverse of `spread`."""
    return from_lanes((words_of(packed) >> NIBBLE_AT) & 15)


def spread_e2m1(codes: Values) -> Values:
    """The same for E2M1. A byte holds columns e and e + 2: the sign of the first in bit 7 and its other bits in 3..1,
    those of the second in 6..4 and its sign in bit 0; row g + 8 is in the lower byte."""
    x = by_lane(codes)
    size, sign = x & 7, x >> 3
    x = np.stack((sign[..., 0, :] << 7 | size[..., 0, :] << 1, size[..., 1, :] << 4 | sign[..., 1, :]), axis=-2)
    return joined(x << BYTE_AT)


def gather_e2m1(packed: Values) -> Values:
    """The inverse of `spread_e2m1`."""
    x = (words_of(packed) >> BYTE_AT) & 255
    first, second = x[..., 0, :], x[..., 1, :]
    return from_lanes(np.stack(((first >> 7) << 3 | (first >> 1) & 7, (second & 1) << 3 | (second >> 4) & 7), axis=-2))


def spread_bytes(codes: Values) -> Values:
    """Bytes [R, 16, C, 256] -> uint8 [R, C, 4096]: for every 32 columns 32 lanes x 16 bytes; those are, of each of two
    products, four columns of row g and of row g + 8."""
    r, _, c, _ = codes.shape
    x = codes.reshape(r, 2, 8, c, 8, 2, 4, 4)                                   # R h g C sub-block i t e
    return x.transpose(0, 3, 4, 2, 6, 5, 1, 7).reshape(r, c, 4096)


def gather_bytes(packed: Values) -> Values:
    """The inverse of `spread_bytes`."""
    r, c, _ = packed.shape
    x = packed.reshape(r, c, 8, 8, 4, 2, 2, 4)
    return x.transpose(0, 6, 3, 1, 2, 5, 4, 7).reshape(r, ROWS, c, COLS)


def by_tile(rows: Values) -> Values:
    """Bytes of rows [R, 16, C, b] -> [R, C, 16 b]."""
    r, _, c, _ = rows.shape
    return rows.transpose(0, 2, 1, 3).reshape(r, c, -1)


def by_row(tiles: Values) -> Values:
    """The inverse of `by_tile`."""
    r, c, _ = tiles.shape
    return tiles.reshape(r, c, ROWS, -1).transpose(0, 2, 1, 3)
