"""GGUF formats in fragment order (fragments.py): blocks uint8 [R, 16, C, bytes of 256 columns] <-> tiles [R, C, b]."""
from __future__ import annotations

import numpy as np

from blackwell_infer.quant.lanes import (
    BIT,
    COLS,
    LANES,
    ROWS,
    Values,
    by_lane,
    by_row,
    by_tile,
    from_lanes,
    gather,
    gather_bytes,
    spread,
    spread_bytes,
)


def pack_q8_0(blocks: Values) -> Values:
    """Codes plus 128, d [16][8]."""
    x = blocks.reshape(*blocks.shape[:3], 8, 34)
    d, q = x[..., :2].reshape(*blocks.shape[:3], 16), x[..., 2:].reshape(*blocks.shape[:3], COLS)
    return np.concatenate((spread_bytes(q ^ 128), by_tile(d)), axis=-1)


def unpack_q8_0(tiles: Values) -> tuple[Values]:
    q, d = gather_bytes(tiles[..., :4096]) ^ 128, by_row(tiles[..., 4096:])
    shape = (*q.shape[:3], 8)
    return (np.concatenate((d.reshape(*shape, 2), q.reshape(*shape, 32)), axis=-1).reshape(*q.shape[:3], 272),)


def pack_q4_0(blocks: Values) -> Values:
    """Nibbles, d [16][8]."""
    shape = blocks.shape[:3]
    x = blocks.reshape(*shape, 8, 18)
    d, q = x[..., :2].reshape(*shape, 16), x[..., 2:]
    codes = np.concatenate((q & 15, q >> 4), axis=-1).reshape(*shape, COLS)
    return np.concatenate((spread(codes), by_tile(d)), axis=-1)


def unpack_q4_0(tiles: Values) -> tuple[Values]:
    q, d = gather(tiles[..., :2048]), by_row(tiles[..., 2048:])
    shape = q.shape[:3]
    q = q.reshape(*shape, 8, 2, 16)
    q = q[..., 0, :] | q[..., 1, :] << 4
    return (np.concatenate((d.reshape(*shape, 8, 2), q), axis=-1).reshape(*shape, 144),)


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
    s, m = fields(head[..., 4:])
    six = np.arange(4, dtype=np.uint32) * 6
    joined = [np.bitwise_or.reduce(x << six, axis=-1) for x in (s[..., :4], s[..., 4:], m[..., :4], m[..., 4:])]
    words = [joined[i] | ((joined[3] >> (8 * i)) & 255) << 24 for i in range(3)]
    packed = np.stack(words, axis=-1).astype("<u4").view(np.uint8)
    return by_tile(np.concatenate((head[..., :4], packed), axis=-1))


def unpack_head(packed: Values) -> Values:
    """The inverse of `pack_head`."""
    rows = by_row(packed)
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
    """Heads [16][16], nibbles."""
    return np.concatenate((pack_head(blocks[..., :16]), spread(sub_blocks(blocks[..., 16:]))), axis=-1)


def unpack_q4_k(tiles: Values) -> tuple[Values]:
    return (np.concatenate((unpack_head(tiles[..., :256]), sub_block_bytes(gather(tiles[..., 256:]))), axis=-1),)


BIT_AT = np.array([[4, 8], [6, 10], [0, 12], [2, 14]], np.uint32)[:, :, None, None] + BIT[:, None] + 16 * BIT
"""Q5_K: where in a word the fifth bit of a column lies, by [product][row // 8][e // 2][e % 2]"""


def pack_q5_k(blocks: Values) -> Values:
    """Heads [16][16], low nibbles, 4 x 32 lanes x 1 word of fifth bits."""
    r, _, c, _ = blocks.shape
    high = (blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    x = by_lane(high.reshape(r, ROWS, c, COLS)) << BIT_AT
    words = np.bitwise_or.reduce(x.reshape(r, c, 4, LANES, 32), axis=-1).astype("<u4")
    return np.concatenate((pack_head(blocks[..., :16]), spread(sub_blocks(blocks[..., 48:])),
                           words.view(np.uint8).reshape(r, c, 512)), axis=-1)


def unpack_q5_k(tiles: Values) -> tuple[Values]:
    r, c, _ = tiles.shape
    words = np.ascontiguousarray(tiles[..., 2304:]).view("<u4").reshape(r, c, 4, 8, 4, 1, 1, 1, 1)
    high = from_lanes((words >> BIT_AT) & 1).reshape(r, ROWS, c, 8, 32)
    high = np.bitwise_or.reduce(high << np.arange(8, dtype=np.uint8)[:, None], axis=-2)
    return (np.concatenate((unpack_head(tiles[..., :256]), high, sub_block_bytes(gather(tiles[..., 256:2304]))),
                           axis=-1),)


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
    return np.concatenate((spread(low), words.view(np.uint8).reshape(r, c, 1024), by_tile(blocks[..., 192:208] ^ 128),
                           by_tile(blocks[..., 208:])), axis=-1)


def unpack_q6_k(tiles: Values) -> tuple[Values]:
    r, c, _ = tiles.shape
    low = gather(tiles[..., :2048]).reshape(r, ROWS, c, 2, 2, 2, 32)
    low = (low[..., 0, :, :] | low[..., 1, :, :] << 4).reshape(r, ROWS, c, 128)
    words = np.ascontiguousarray(tiles[..., 2048:3072]).view("<u4").reshape(r, c, 4, 8, 4, 2, 1, 1, 1, 1)
    x = (words >> (PAIR_AT[..., None] + 16 * np.arange(2, dtype=np.uint32))) & 3
    pairs = x.transpose(0, 7, 3, 1, 2, 5, 6, 4, 8, 9).astype(np.uint8).reshape(r, ROWS, c, 2, 4, 32)
    pairs = np.bitwise_or.reduce(pairs << (2 * np.arange(4, dtype=np.uint8)[:, None]), axis=-2).reshape(r, ROWS, c, 64)
    return (np.concatenate((low, pairs, by_row(tiles[..., 3072:3328]) ^ 128, by_row(tiles[..., 3328:])), axis=-1),)
