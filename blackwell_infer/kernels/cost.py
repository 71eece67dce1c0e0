"""What a launch moves and computes, declared with its kernel: the figures of a roofline.

A cost is what the launch must move at least: every byte once, however often a cache serves it again. It follows from
shapes and scalars alone. What lies on the device counts as it is in plain decoding: rows are greedy and without
penalties, and rows of a batch bring equally many tokens. The lengths of contexts, which shapes only bound, may be told.
"""
from __future__ import annotations

from collections.abc import Mapping

import msgspec

from blackwell_infer.types import Array


class Cost(msgspec.Struct, frozen=True):
    """Bytes read and written, and floating-point operations of matrix products (2 for a multiply-add)."""

    nbytes: int = 0
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.nbytes + other.nbytes, self.flops + other.flops)


class Call(msgspec.Struct, frozen=True):
    """One launch: its arguments by the names of the kernel's parameters, and what is known of the step.

    `lengths` are the keys of each row, this step's included; None takes what the block table holds.
    """

    args: Mapping[str, Array | int | float | None]
    lengths: tuple[int, ...] | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array."""
        value = self.args[name]
        assert isinstance(value, Array)
        return value.shape

    def nbytes(self, *names: str) -> int:
        """Bytes of whole arrays; null pointers have none."""
        return sum(size_of(self.args[name]) for name in names)

    def number(self, name: str) -> int:
        """A scalar argument."""
        value = self.args[name]
        assert isinstance(value, int)
        return value

    def keys(self, rows: int, room: int, window: int) -> int:
        """Keys that one query of each of `rows` rows sees, together; the block table has room for `room` a row."""
        lengths = (room,) * rows if self.lengths is None else self.lengths
        return sum(min(n, window) if window > 0 else n for n in lengths)


def size_of(value: Array | int | float | None) -> int:
    """Bytes of an array; 0 for anything else."""
    if not isinstance(value, Array):
        return 0
    n = value.dtype.itemsize
    for s in value.shape:
        n *= s
    return n


def moved(call: Call) -> Cost:
    """Every array argument once: kernels that touch all elements of what they are given."""
    return Cost(call.nbytes(*call.args))


def multiplied(call: Call) -> Cost:
    """x [M, K] times w [N, K] (and w1 [N1, K]) transposed into columns of y; every argument but y and residual is read
    whole."""
    m, n, k = call.number("M"), call.number("N"), call.number("K")
    n += call.number("N1") if "N1" in call.args else 0
    whole = call.nbytes(*(name for name in call.args if name not in ("y", "residual")))
    columns = sum(m * n * size_of(value) // max(elements(value), 1)
                  for name, value in call.args.items() if name in ("y", "residual") and isinstance(value, Array))
    return Cost(whole + columns, 2 * m * n * k)


def routed(call: Call) -> Cost:
    """Products of (token, slot) pairs with their experts' matrices [N, K], stacked in `w`: of evenly routed tokens,
    whose `top` experts differ, the expected number of different experts is read."""
    n, k, top = call.number("N"), call.number("K"), call.number("top")
    chosen = call.args["experts" if "experts" in call.args else "order"]
    assert isinstance(chosen, Array)
    pairs, weights = elements(chosen), tuple(name for name in ("w", "scales", "factors") if name in call.args)
    count = call.shape("w")[0] // n
    met = count * (1 - (1 - top / count) ** (pairs // top))
    others = tuple(name for name in call.args if name not in weights)
    return Cost(call.nbytes(*others) + int(call.nbytes(*weights) * met / count), 2 * pairs * n * k)


def elements(value: Array) -> int:
    """Number of elements of an array."""
    return size_of(value) // value.dtype.itemsize
