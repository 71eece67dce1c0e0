"""Global memory of the emulated device: one heap with an allocation map, so that every access is checked."""
from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np

from blackwell_infer.emulator.parse import PtxError

BASE = 1 << 40
PARAM_WINDOW, SHARED_WINDOW, LOCAL_WINDOW = 1 << 45, 1 << 46, 1 << 47
"""where parameters, shared and local memory appear among generic addresses"""
POISON = 0xFF
"""fills memory that nothing wrote: NaN as any float, -1 as a signed integer, far out of range as an index"""
GUARD = 256

Ints = np.ndarray[Any, np.dtype[Any]]


class LaneError(PtxError):
    """A fault of one lane: `at` is its place among the active ones."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


class Heap:
    """Allocations at increasing addresses, 256-byte aligned, with guard gaps; freed ranges are never used again.

    `known` has a byte for each of `bytes`: 255 if it was written, 0 if not. `starts` and `ends` are the allocations,
    sorted."""

    def __init__(self) -> None:
        self.bytes = np.empty(1 << 26, np.uint8)
        self.known = np.empty(1 << 26, np.uint8)
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.top = 0

    def reserve(self, nbytes: int) -> int:
        """Address of a new range, in which `define` makes allocations."""
        start = self.top
        self.top = (start + nbytes + GUARD + 255) // 256 * 256
        if self.top > len(self.bytes):
            self.bytes, self.known = (self.grown(a, start) for a in (self.bytes, self.known))
        return BASE + start

    def grown(self, array: Ints, used: int) -> Ints:
        larger = np.empty(max(self.top, 4 * len(array)), np.uint8)
        larger[:used] = array[:used]
        return larger

    def define(self, address: int, nbytes: int) -> None:
        """Make a range an allocation, poisoned, in place of those that overlap it."""
        start = address - BASE
        at = bisect_left(self.starts, start)
        if at and self.ends[at - 1] > start:
            at -= 1
        last = bisect_left(self.starts, start + max(nbytes, 1))
        del self.starts[at:last], self.ends[at:last]
        self.starts.insert(at, start)
        self.ends.insert(at, start + nbytes)
        self.bytes[start : start + nbytes] = POISON
        self.known[start : start + nbytes] = 0

    def allocate(self, nbytes: int) -> int:
        """Address of a new poisoned allocation."""
        address = self.reserve(nbytes)
        self.define(address, nbytes)
        return address

    def free(self, address: int) -> None:
        """Further access is an error."""
        at = bisect_left(self.starts, address - BASE)
        self.ends[at] = self.starts[at]

    def forget(self, address: int, nbytes: int) -> None:
        """Take back all allocations that begin in a range."""
        a, b = (bisect_left(self.starts, end - BASE) for end in (address, address + nbytes))
        del self.starts[a:b], self.ends[a:b]

    def view(self, address: int, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a range, writable (they count as written); valid until the next allocation."""
        bytes_ = self.peek(address, nbytes)
        self.known[address - BASE : address - BASE + nbytes] = 255
        return bytes_

    def peek(self, address: int, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a range, to read; valid until the next allocation."""
        self.check(np.array([address], np.uint64), nbytes)
        return self.bytes[address - BASE : address - BASE + nbytes]

    def check(self, addresses: Ints, nbytes: int) -> Ints:
        """Offsets into `bytes`; LaneError for the first address outside any allocation."""
        offsets = addresses.view(np.int64) - BASE
        low, high = int(offsets.min()), int(offsets.max()) + nbytes
        at = bisect_right(self.starts, low) - 1
        if at >= 0 and high <= self.ends[at]:
            return offsets
        found = np.searchsorted(self.starts, offsets, side="right") - 1
        good = (found >= 0) & (offsets + nbytes <= np.asarray([*self.ends, 0])[found])
        if not good.all():
            bad = int(good.argmin())
            raise LaneError(self.describe(int(addresses[bad]), nbytes), bad)
        return offsets

    def describe(self, address: int, nbytes: int) -> str:
        """Where an address outside every allocation lies."""
        offset = address - BASE
        at = bisect_right(self.starts, offset) - 1
        if not 0 <= offset < self.top or at < 0:
            return f"access of {nbytes} bytes at {address:#x}, which is no device address"
        size = self.ends[at] - self.starts[at]
        if not size:
            return f"access of {nbytes} bytes at {address:#x}, in memory that was freed"
        return f"access of {nbytes} bytes at offset {offset - self.starts[at]} of an allocation of {size} bytes"
