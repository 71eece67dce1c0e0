"""Codes under scales in fragment order (fragments.py): codes, scales, factors, uint8 [R, 16, C, bytes of 256 columns]
each <-> tiles [R, C, bytes]: codes, scales [16][bytes], factors float32 [16]."""
from __future__ import annotations

import numpy as np

from blackwell_infer.quant.lanes import (
    COLS,
    Values,
    by_row,
    by_tile,
    gather_bytes,
    gather_e2m1,
    spread_bytes,
    spread_e2m1,
)


def pack_e2m1(codes: Values, *rest: Values) -> Values:
    """Codes two a byte, low nibble first."""
    nibbles = np.stack((codes & 15, codes >> 4), axis=-1).reshape(*codes.shape[:3], COLS)
    return np.concatenate((spread_e2m1(nibbles), *(by_tile(part) for part in rest)), axis=-1)


def unpack_e2m1(scale_bytes: int, tiles: Values) -> tuple[Values, ...]:
    """With `scale_bytes` of scales for 256 columns; factors follow where more is left."""
    nibbles = gather_e2m1(tiles[..., :2048])
    return (nibbles[..., ::2] | nibbles[..., 1::2] << 4, *split(tiles[..., 2048:], scale_bytes))


def pack_e4m3(codes: Values, *rest: Values) -> Values:
    return np.concatenate((spread_bytes(codes), *(by_tile(part) for part in rest)), axis=-1)


def unpack_e4m3(scale_bytes: int, tiles: Values) -> tuple[Values, ...]:
    return (gather_bytes(tiles[..., :4096]), *split(tiles[..., 4096:], scale_bytes))


def split(rest: Values, scale_bytes: int) -> tuple[Values, ...]:
    """Scales, if any, and factors, if any, of every row."""
    parts = rest[..., : 16 * scale_bytes], rest[..., 16 * scale_bytes :]
    return tuple(by_row(part) for part in parts if part.shape[-1])


def pack_block(codes: Values, scales: Values) -> Values:
    """Scales of 128 columns, float32, alike for all rows of a tile: two, and 8 bytes of zeros."""
    return np.concatenate((spread_bytes(codes), scales[:, 0], np.zeros_like(scales[:, 0])), axis=-1)


def unpack_block(tiles: Values) -> tuple[Values, Values]:
    codes = gather_bytes(tiles[..., :4096])
    return codes, np.repeat(tiles[:, None, :, 4096:4104], codes.shape[1], axis=1)
