"""Weights in the order in which the lanes of a warp read them as operands of mma.m16n8k16.

A matrix is a grid of tiles of 16 rows and 256 columns, the tiles of 16 rows one after the other; missing rows and
columns are zero. Lane 4 g + t of a warp holds rows g and g + 8.
Nibbles: columns 64 c + 16 i + 4 t + e of a tile, e = 0..3, lie in word i of the 16 bytes of chunk c that belong to the
lane: nibble 2 (e // 2) + row // 8 of its low half (e even) or high half (e odd). lanes.py has the orders of E2M1 codes
and of bytes, fragments_gguf.py and fragments_codes.py the tiles of every format.
A permutation of bits: nothing is re-encoded. `ptx/include/fragments.cuh` has the readers.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import msgspec
import numpy as np

from blackwell_infer.quant import FORMATS
from blackwell_infer.quant import fragments_codes as codes
from blackwell_infer.quant import fragments_gguf as gguf
from blackwell_infer.quant.format import Weight
from blackwell_infer.quant.fp8 import SIDE
from blackwell_infer.quant.lanes import COLS, ROWS, Values


class Fragments(msgspec.Struct, frozen=True):
    """How the parts of one format, uint8 [row tiles, 16, column tiles, its width] each, become tiles [row tiles, column
    tiles, bytes], and back."""

    tile_bytes: int
    widths: tuple[int, ...]
    """Bytes of each part for a row and 256 columns. A factor per row repeats for all its tiles; a scale for 128 rows
    counts as that of each."""
    pack: Callable[..., Values]
    unpack: Callable[[Values], tuple[Values, ...]]


FRAGMENTS: Mapping[str, Fragments] = MappingProxyType({
    "q8_0": Fragments(4352, (272,), gguf.pack_q8_0, gguf.unpack_q8_0),
    "q4_0": Fragments(2304, (144,), gguf.pack_q4_0, gguf.unpack_q4_0),
    "q4_k": Fragments(2304, (144,), gguf.pack_q4_k, gguf.unpack_q4_k),
    "q5_k": Fragments(2816, (176,), gguf.pack_q5_k, gguf.unpack_q5_k),
    "q6_k": Fragments(3360, (210,), gguf.pack_q6_k, gguf.unpack_q6_k),
    "nvfp4": Fragments(2368, (128, 16, 4), codes.pack_e2m1, partial(codes.unpack_e2m1, 16)),
    "nvfp4_f16": Fragments(2624, (128, 32, 4), codes.pack_e2m1, partial(codes.unpack_e2m1, 32)),
    "mxfp4": Fragments(2176, (128, 8), codes.pack_e2m1, partial(codes.unpack_e2m1, 8)),
    "mxfp8": Fragments(4224, (256, 8), codes.pack_e4m3, partial(codes.unpack_e4m3, 8)),
    "fp8": Fragments(4160, (256, 4), codes.pack_e4m3, partial(codes.unpack_e4m3, 0)),
    "fp8_block": Fragments(4112, (256, 8), codes.pack_block, codes.unpack_block),
})
"""Formats that have this order; a Weight in it has the format's name with `SUFFIX` and one uint8 part [bytes]. Left out
is the scale of inputs that a checkpoint recorded: only `ops.linear_quantized` reads it, of weights in other orders."""
SUFFIX = "_fragments"
STACKED = ("q4_k", "q6_k", "q8_0", "nvfp4")
"""Formats in which stacks of experts are put into this order, expert after expert, every tile with its own scales"""


def fragmented(w: Weight) -> Weight:
    """A host weight in fragment order; a format that has none stays as it is."""
    form = FRAGMENTS.get(w.format)
    if form is None:
        return w
    parts = (tiled(np.asarray(part), w.shape, width) for part, width in zip(w.parts, form.widths, strict=False))
    return Weight(w.format + SUFFIX, w.shape, (np.ascontiguousarray(form.pack(*parts)).reshape(-1),))


def tiled(part: Values, shape: tuple[int, int], width: int) -> Values:
    """A part of a matrix of this shape as uint8 [row tiles, 16, column tiles, width], padded with zeros."""
    rows, columns = shape[0], -(-shape[1] // COLS)
    if part.ndim == 1:
        part = np.repeat(part[:, None], columns, axis=1)
    elif len(part) < rows:
        part = np.repeat(part, SIDE, axis=0)[:rows]
    data = np.ascontiguousarray(part).view(np.uint8).reshape(rows, -1)
    data = np.pad(data, ((0, -rows % ROWS), (0, columns * width - data.shape[1])))
    return data.reshape(-1, ROWS, columns, width)


def plain(w: Weight) -> Weight:
    """The inverse of `fragmented`; the scale of inputs is 0, none recorded."""
    name = w.format.removesuffix(SUFFIX)
    form = FRAGMENTS.get(name)
    if form is None or not w.format.endswith(SUFFIX):
        return w
    rows, columns = -(-w.shape[0] // ROWS), -(-w.shape[1] // COLS)
    found = form.unpack(np.asarray(w.parts[0]).reshape(rows, columns, form.tile_bytes))
    layout = FORMATS[name].layout(w.shape)
    parts = [np.zeros(shape, dtype) for shape, dtype in layout]
    for (shape, dtype), target, part in zip(layout, parts, found, strict=False):
        step = 1 if shape[0] == w.shape[0] else SIDE
        data = part.reshape(rows * ROWS, -1)[: w.shape[0] : step, : target.nbytes // max(shape[0], 1)]
        target[...] = np.ascontiguousarray(data).view(dtype).reshape(shape)
    return Weight(name, w.shape, tuple(parts))
