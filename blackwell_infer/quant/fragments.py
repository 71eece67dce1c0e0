"""Weights in the order in which the lanes of a warp read them as operands of mma.m16n8k16.

A matrix is a grid of tiles of 16 rows and 256 columns, the tiles of 16 rows one after the other; missing rows are zero.
Lane 4 g + t of a warp holds rows g and g + 8. Columns 64 c + 16 i + 4 t + e of a tile, e = 0..3, lie in word i of the
16 bytes of chunk c that belong to the lane: nibble 2 (e // 2) + row // 8 of its low half (e even) or high half (e odd).
A permutation of bits: nothing is re-encoded. `ptx/include/fragments.cuh` has the reader of every format.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.quant.format import Weight

Values = np.ndarray[Any, Any]

ROWS, COLS, LANES = 16, 256, 32


class Fragments(msgspec.Struct, frozen=True):
    """How blocks of one format, uint8 [row tiles, 16, column tiles, bytes], become tiles [row tiles, column tiles,
    bytes], and back."""

    tile_bytes: int
    pack: Callable[[Values], Values]
    unpack: Callable[[Values], Values]


def spread(codes: Values) -> Values:
    """Nibbles [R, 16, C, 256] -> uint8 [R, C, 2048]: 4 chunks x 32 lanes x 16 bytes."""
    r, _, c, _ = codes.shape
    x = codes.reshape(r, 2, 8, c, 4, 4, 4, 2, 2).astype(np.uint32)             # R h g C chunk i t pair odd
    shift = np.arange(2, dtype=np.uint32)
    x = x << (8 * shift[:, None] + 16 * shift)                                 # pair, odd
    x = x << (4 * shift[:, None, None, None, None, None, None, None])          # h
    words = np.bitwise_or.reduce(x.transpose(0, 3, 4, 2, 6, 5, 1, 7, 8).reshape(r, c, 4, LANES, 4, 8), axis=-1)
    packed: Values = words.astype("<u4").view(np.uint8).reshape(r, c, 2048)
    return packed


def gather(packed: Values) -> Values:
    """The inverse of `spread`."""
    r, c, _ = packed.shape
    words = np.ascontiguousarray(packed).view("<u4").reshape(r, c, 4, 8, 4, 4)  # R C chunk g t i
    shift = np.arange(2, dtype=np.uint32)
    at = 4 * shift[:, None, None] + 8 * shift[:, None] + 16 * shift            # h, pair, odd
    x = (words[..., None, None, None] >> at) & 15
    codes: Values = x.transpose(0, 6, 3, 1, 2, 5, 4, 7, 8).astype(np.uint8).reshape(r, ROWS, c, COLS)
    return codes


def fields(packed: Values) -> tuple[Values, Values]:
    """The eight 6-bit scales and minima of the twelve bytes of Q4_K and Q5_K, uint32 [..., 8] each."""
    b = packed.astype(np.uint32)
    low, mid, high = b[..., :4], b[..., 4:8], b[..., 8:]
    return (np.concatenate((low & 63, (high & 15) | (low >> 6) << 4), axis=-1),
            np.concatenate((mid & 63, (high >> 4) | (mid >> 6) << 4), axis=-1))


def pack_head(head: Values) -> Values:
    """The 16-byte heads of Q4_K and Q5_K, [R, 16, C, 16] -> [R, C, 256].

    Per row d and dmin, then three words: scales 0..3, scales 4..7 and minima 0..3, 6 bits each, and on top of them the
    low, middle and high byte of minima 4..7.
    """
    r, _, c, _ = head.shape
    s, m = fields(head[..., 4:])
    six = np.arange(4, dtype=np.uint32) * 6
    joined = [np.bitwise_or.reduce(x << six, axis=-1) for x in (s[..., :4], s[..., 4:], m[..., :4], m[..., 4:])]
    words = [joined[i] | ((joined[3] >> (8 * i)) & 255) << 24 for i in range(3)]
    packed = np.stack(words, axis=-1).astype("<u4").view(np.uint8)
    return np.concatenate((head[..., :4], packed), axis=-1).transpose(0, 2, 1, 3).reshape(r, c, 256)


def unpack_head(packed: Values) -> Values:
    """The inverse of `pack_head`."""
    r, c, _ = packed.shape
    rows = packed.reshape(r, c, ROWS, 16).transpose(0, 2, 1, 3)
    words = np.ascontiguousarray(rows[..., 4:]).view("<u4")                    # [R, 16, C, 3]
    last = np.bitwise_or.reduce((words >> 24) << (8 * np.arange(3, dtype=np.uint32)), axis=-1)
    six = np.arange(4, dtype=np.uint32) * 6
    s = np.concatenate([(words[..., i, None] >> six) & 63 for i in (0, 1)], axis=-1)
    m = np.concatenate([(x[..., None] >> six) & 63 for x in (words[..., 2], last)], axis=-1)
    parts = (s[..., :4] | (s[..., 4:] >> 4) << 6, m[..., :4] | (m[..., 4:] >> 4) << 6,
             (s[..., 4:] & 15) | (m[..., 4:] & 15) << 4)
    return np.concatenate((rows[..., :4], *(p.astype(np.uint8) for p in parts)), axis=-1)


def sub_blocks(qs: Values) -> Values:
    """128 bytes of Q4_K or Q5_K, [..., 128] -> nibbles [..., 256]: bytes 32 j .. hold sub-blocks 2 j and 2 j + 1."""
    x = qs.reshape(*qs.shape[:-1], 4, 1, 32)
    return np.concatenate((x & 15, x >> 4), axis=-2).reshape(*qs.shape[:-1], COLS)


def sub_block_bytes(codes: Values) -> Values:
    """The inverse of `sub_blocks`."""
    x = codes.reshape(*codes.shape[:-1], 4, 2, 32)
    packed: Values = (x[..., 0, :] | x[..., 1, :] << 4).reshape(*codes.shape[:-1], 128)
    return packed


def pack_q4_k(blocks: Values) -> Values:
    return np.concatenate((pack_head(blocks[..., :16]), spread(sub_blocks(blocks[..., 16:]))), axis=-1)


def unpack_q4_k(tiles: Values) -> Values:
    return np.concatenate((unpack_head(tiles[..., :256]), sub_block_bytes(gather(tiles[..., 256:]))), axis=-1)


PAIR_AT = np.array([[4, 2], [8, 6], [10, 0], [14, 12]], np.uint32).reshape(2, 2, 2)
"""Q6_K: bit of the pair of column e in its half of a word, by [product % 2][row // 8][e // 2]"""


def pack_q6_k(blocks: Values) -> Values:
    """4 x 512 bytes of low nibbles, 4 x 32 lanes x 2 words of high bit pairs, scales plus 128 [16][16], d [16]."""
    r, _, c, _ = blocks.shape
    low = blocks[..., :128].reshape(r, ROWS, c, 2, 2, 32)
    low = np.stack((low & 15, low >> 4), axis=-3).reshape(r, ROWS, c, COLS)    # half, nibble, byte pair
    pairs = blocks[..., 128:192].reshape(r, ROWS, c, 2, 1, 32)
    pairs = ((pairs >> (2 * np.arange(4, dtype=np.uint8)[:, None])) & 3).reshape(r, 2, 8, c, 4, 2, 2, 4, 2, 2)
    x = pairs.astype(np.uint32).transpose(0, 3, 4, 2, 7, 5, 6, 1, 8, 9)        # R C chunk g t word i h pair odd
    x = x << (PAIR_AT[..., None] + 16 * np.arange(2, dtype=np.uint32))
    words = np.bitwise_or.reduce(x.reshape(r, c, 4, LANES, 2, 16), axis=-1).astype("<u4")
    scales = (blocks[..., 192:208] ^ 128).transpose(0, 2, 1, 3).reshape(r, c, 256)
    d = blocks[..., 208:].transpose(0, 2, 1, 3).reshape(r, c, 32)
    return np.concatenate((spread(low), words.view(np.uint8).reshape(r, c, 1024), scales, d), axis=-1)


def unpack_q6_k(tiles: Values) -> Values:
    r, c, _ = tiles.shape
    low = gather(tiles[..., :2048]).reshape(r, ROWS, c, 2, 2, 2, 32)
    low = (low[..., 0, :, :] | low[..., 1, :, :] << 4).reshape(r, ROWS, c, 128)
    words = np.ascontiguousarray(tiles[..., 2048:3072]).view("<u4").reshape(r, c, 4, 8, 4, 2, 1, 1, 1, 1)
    x = (words >> (PAIR_AT[..., None] + 16 * np.arange(2, dtype=np.uint32))) & 3
    pairs = x.transpose(0, 7, 3, 1, 2, 5, 6, 4, 8, 9).astype(np.uint8).reshape(r, ROWS, c, 2, 4, 32)
    pairs = np.bitwise_or.reduce(pairs << (2 * np.arange(4, dtype=np.uint8)[:, None]), axis=-2).reshape(r, ROWS, c, 64)
    scales = tiles[..., 3072:3328].reshape(r, c, ROWS, 16).transpose(0, 2, 1, 3) ^ 128
    d = tiles[..., 3328:].reshape(r, c, ROWS, 2).transpose(0, 2, 1, 3)
    return np.concatenate((low, pairs, scales, d), axis=-1)


FRAGMENTS: Mapping[str, Fragments] = MappingProxyType({
    "q4_k": Fragments(2304, pack_q4_k, unpack_q4_k),
    "q6_k": Fragments(3360, pack_q6_k, unpack_q6_k),
})
"""Formats that have this order; a Weight in it has the format's name with `SUFFIX` and one uint8 part [bytes]."""
SUFFIX = "_fragments"


def fragmented(w: Weight) -> Weight:
    """A host weight in fragment order; a format that has none stays as it is."""
    form = FRAGMENTS.get(w.format)
    if form is None:
        return w
    rows = np.asarray(w.parts[0])
    rows = np.pad(rows, ((0, -len(rows) % ROWS), (0, 0)))
    blocks = rows.reshape(len(rows) // ROWS, ROWS, w.shape[1] // COLS, -1)
    return Weight(w.format + SUFFIX, w.shape, (np.ascontiguousarray(form.pack(blocks)).reshape(-1),))


def plain(w: Weight) -> Weight:
    """The inverse of `fragmented`."""
    form = FRAGMENTS.get(w.format.removesuffix(SUFFIX))
    if form is None or not w.format.endswith(SUFFIX):
        return w
    tiles = np.asarray(w.parts[0]).reshape(-(-w.shape[0] // ROWS), -(-w.shape[1] // COLS), form.tile_bytes)
    blocks = form.unpack(tiles)
    return Weight(w.format.removesuffix(SUFFIX), w.shape, (blocks.reshape(len(tiles) * ROWS, -1)[: w.shape[0]],))
