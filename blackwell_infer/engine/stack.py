"""The matrices of a layer's experts as one: rows of every expert after those of the one before, whatever the format."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec
import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.errors import UnsupportedModelError
from blackwell_infer.models.take import members
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Weight
from blackwell_infer.quant.fragments import FRAGMENTS, STACKED, SUFFIX
from blackwell_infer.quant.lanes import COLS, ROWS
from blackwell_infer.types import Array

Source = Callable[[str], Weight]
SCRATCH = 128 << 20
"""Bytes of stored blocks that wait on a device for their place in another order"""


class Arrange(Protocol):
    """`ops.api.Ops.arrange`."""

    def __call__(self, w: Weight, out: Array | None = None) -> Weight: ...


class Pieces(msgspec.Struct, frozen=True):
    """Row blocks `names` (see `models.spec.Take.experts`) of `count` experts, each block [rows, cols] = `shape`, and
    matrices that make one more."""

    names: tuple[str, ...]
    count: int
    shape: tuple[int, int]
    last: tuple[str, ...] = ()

    @property
    def whole(self) -> tuple[int, int]:
        """Shape of the stack."""
        return (self.count + bool(self.last)) * len(self.names) * self.shape[0], self.shape[1]

    def check(self, form: str) -> None:
        """UnsupportedModelError: matrices of this format and shape cannot be stacked."""
        more = ((len(self.names) * self.shape[0] // max(len(self.last), 1), self.shape[1]),) * len(self.last)
        if not FORMATS[form].joins((self.shape,) * (self.count * len(self.names)) + more):
            raise UnsupportedModelError(f"tensor {self.names[0]}: experts of {self.shape[0]} rows in {form} cannot be "
                                        "stacked, its scales belong to blocks of rows; take another release")


def one_matrix(pieces: Pieces, form: str, source: Source) -> Weight:
    """The stack of one block on the host: the stored tensor of all experts itself, else a copy of their bytes."""
    (name,) = pieces.names
    parts = members(name, pieces.count)
    if len(parts) == 1:
        return source(parts[0])
    pieces.check(form)
    return FORMATS[form].concat(tuple(source(part) for part in parts))


def stacked(queue: Queue, pieces: Pieces, form: str, source: Source, loaded: Callable[[int], None]) -> Weight:
    """The stack on a device, uploaded piece by piece; `loaded` is told the bytes."""
    pieces.check(form)
    layout = FORMATS[form].layout
    parts = tuple(queue.empty(shape, dtype) for shape, dtype in layout(pieces.whole))
    rest: dict[int, np.ndarray[Any, Any]] = {}
    for first, weight in blocks(pieces, source):
        start, size = layout((first, pieces.shape[1])), layout(weight.shape)
        for i, (part, block) in enumerate(zip(parts, weight.parts, strict=True)):
            host = np.asarray(block)
            if per_row(form, i, pieces.shape[1]):
                at = start[i][0][0]
                queue.upload(part[at : at + size[i][0][0]], host)
                loaded(host.nbytes)
            else:  # one number for all rows, as `Packed.concat` joins them
                rest[i] = np.maximum(rest[i], host) if i in rest else host
    for i, host in rest.items():
        queue.upload(parts[i], host)
        loaded(host.nbytes)
    return Weight(form, pieces.whole, parts)


def ordered(queue: Queue, pieces: Pieces, form: str, source: Source, loaded: Callable[[int], None],
            arrange: Arrange) -> Weight:
    """`stacked` in fragment order, for what is `tiled`: some rows at a time go through scratch memory."""
    rows, cols = pieces.whole
    row = FRAGMENTS[form].tile_bytes * (cols // COLS) // ROWS  # bytes, in tiles
    out = queue.empty((rows * row,), np.uint8)
    most = min(rows, max(SCRATCH // row // ROWS, 1) * ROWS)
    raw = tuple(queue.empty(shape, dtype) for shape, dtype in FORMATS[form].layout((most, cols)))
    for first, weight in blocks(pieces, source):
        for low in range(0, weight.shape[0], most):
            host = slice_rows(weight, low, min(most, weight.shape[0] - low))
            count, parts = host.shape[0], []
            for i, (target, part) in enumerate(zip(raw, host.parts, strict=True)):
                if per_row(form, i, cols):
                    target = target[:count]
                    queue.upload(target, np.asarray(part))
                if low == 0 or per_row(form, i, cols):  # the scale of inputs counts once per piece
                    loaded(np.asarray(part).nbytes)
                parts.append(target)
            at = (first + low) * row
            arrange(Weight(form, host.shape, tuple(parts)), out[at : at + count * row])
    return Weight(form + SUFFIX, pieces.whole, (out,))


def tiled(pieces: Pieces, form: str) -> bool:
    """Whether a stack can lie in fragment order: every matrix, and gate and up in one, must begin with a tile."""
    return form in STACKED and pieces.shape[0] % (2 * ROWS) == 0 and pieces.shape[1] % COLS == 0


def blocks(pieces: Pieces, source: Source) -> Iterator[tuple[int, Weight]]:
    """Every piece of the stack, and its first row. One tensor that is the whole stack is one piece."""
    n = pieces.shape[0]
    stride = n * len(pieces.names)
    for j, name in enumerate(pieces.names):
        parts = members(name, pieces.count)
        if len(parts) == 1 and len(pieces.names) == 1:
            yield 0, source(parts[0])
            continue
        everything = source(parts[0]) if parts == (name,) else None
        for e in range(pieces.count):
            weight = source(parts[e]) if everything is None else slice_rows(everything, e * n, n)
            yield e * stride + j * n, weight
    for i, name in enumerate(pieces.last):
        yield pieces.count * stride + i * (stride // len(pieces.last)), source(name)


def slice_rows(w: Weight, first: int, rows: int) -> Weight:
    """Neighbouring rows of a host weight as views; both numbers must be whole blocks of rows of its format."""
    layout, cols = FORMATS[w.format].layout, w.shape[1]
    start, stop = layout((first, cols)), layout((first + rows, cols))
    parts = tuple(np.asarray(part)[start[i][0][0] : stop[i][0][0]] if per_row(w.format, i, cols) else part
                  for i, part in enumerate(w.parts))
    return Weight(w.format, (rows, cols), parts)


def per_row(form: str, part: int, cols: int) -> bool:
    """Whether a part of a format grows with the rows (codes and scales do, the scale of inputs does not)."""
    layout = FORMATS[form].layout
    return layout((1 << 20, cols))[part][0] != layout((1 << 21, cols))[part][0]
