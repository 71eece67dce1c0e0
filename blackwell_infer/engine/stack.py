"""The matrices of a layer's experts as one: rows of every expert after those of the one before, whatever the format."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
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
    """The stack on a device, many pieces at a time; `loaded` is told the bytes."""
    pieces.check(form)
    layout, grows = FORMATS[form].layout, growing(form, pieces.shape[1])
    parts = tuple(queue.empty(shape, dtype) for shape, dtype in layout(pieces.whole))
    rest: dict[int, np.ndarray[Any, Any]] = {}
    for first, weights in runs(pieces, source, pieces.whole[0]):
        start = layout((first, pieces.shape[1]))
        for i, part in enumerate(parts):
            hosts = [np.asarray(w.parts[i]) for w in weights]
            if grows[i]:
                at = start[i][0][0]
                target = part[at : at + sum(len(host) for host in hosts)]
                queue.upload(target, *hosts)
                loaded(target.nbytes)
            else:  # one number for all rows, as `Packed.concat` joins them
                rest[i] = np.maximum.reduce([*hosts, rest.get(i, hosts[0])])
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
    grows = growing(form, cols)
    raw = tuple(queue.empty(shape, dtype) for shape, dtype in FORMATS[form].layout((most, cols)))

    def read(name: str) -> Weight:
        weight = source(name)
        loaded(sum(np.asarray(part).nbytes for part, grow in zip(weight.parts, grows, strict=True) if not grow))
        return weight

    for first, weights in runs(pieces, read, most):
        count, parts = sum(w.shape[0] for w in weights), []
        for i, target in enumerate(raw):
            if grows[i]:
                target = target[:count]
                queue.upload(target, *(np.asarray(w.parts[i]) for w in weights))
                loaded(target.nbytes)
            parts.append(target)  # what is one number for all rows, the scale of inputs, has no place in the order
        arrange(Weight(form, (count, cols), tuple(parts)), out[first * row : (first + count) * row])
    return Weight(form + SUFFIX, pieces.whole, (out,))


def runs(pieces: Pieces, source: Source, most: int) -> Iterator[tuple[int, list[Weight]]]:
    """Neighbouring rows of the stack, up to `most` at a time: the first one, and the weights that hold them. What is
    read of a checkpoint are views, so many of them cost nothing."""
    start, count, found = 0, 0, list[Weight]()
    for first, weight in blocks(pieces, source):
        assert first == start + count
        low = 0
        while low < weight.shape[0]:
            take = min(weight.shape[0] - low, most - count)
            found.append(weight if take == weight.shape[0] else slice_rows(weight, low, take))
            count, low = count + take, low + take
            if count == most:
                yield start, found
                start, count, found = start + count, 0, []
    if found:
        yield start, found


def tiled(pieces: Pieces, form: str) -> bool:
    """Whether a stack can lie in fragment order: every matrix, and gate and up in one, must begin with a tile."""
    return form in STACKED and pieces.shape[0] % (2 * ROWS) == 0 and pieces.shape[1] % COLS == 0


def blocks(pieces: Pieces, source: Source) -> Iterator[tuple[int, Weight]]:
    """Every piece of the stack, and its first row, one behind the other. One tensor that is the whole stack is one
    piece."""
    n = pieces.shape[0]
    stride = n * len(pieces.names)
    parts = [members(name, pieces.count) for name in pieces.names]
    whole = [source(name) if each == (name,) else None for name, each in zip(pieces.names, parts, strict=True)]
    if len(whole) == 1 and whole[0] is not None:
        yield 0, whole[0]
    else:
        for e in range(pieces.count):
            for j, (each, stack) in enumerate(zip(parts, whole, strict=True)):
                yield e * stride + j * n, source(each[e]) if stack is None else slice_rows(stack, e * n, n)
    for i, name in enumerate(pieces.last):
        yield pieces.count * stride + i * (stride // len(pieces.last)), source(name)


def slice_rows(w: Weight, first: int, rows: int) -> Weight:
    """Neighbouring rows of a host weight as views; both numbers must be whole blocks of rows of its format."""
    layout, cols = FORMATS[w.format].layout, w.shape[1]
    start, stop, grows = layout((first, cols)), layout((first + rows, cols)), growing(w.format, cols)
    parts = tuple(np.asarray(part)[start[i][0][0] : stop[i][0][0]] if grows[i] else part
                  for i, part in enumerate(w.parts))
    return Weight(w.format, (rows, cols), parts)


@cache
def growing(form: str, cols: int) -> tuple[bool, ...]:
    """Of each part of a format whether it grows with the rows (codes and scales do, the scale of inputs does not)."""
    few, many = (FORMATS[form].layout((1 << n, cols)) for n in (20, 21))
    return tuple(a[0] != b[0] for a, b in zip(few, many, strict=True))
