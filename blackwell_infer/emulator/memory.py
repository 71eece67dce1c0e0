"""Global memory of the emulated device: one heap with an allocation map, so that every access is checked."""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.emulator.parse import PtxError

BASE = 1 << 40
SHARED_WINDOW, LOCAL_WINDOW = 1 << 46, 1 << 47
"""where shared and local memory appear among generic addresses"""
POISON = 0xFF
"""fills memory that nothing wrote: NaN as any float, -1 as a signed integer, far out of range as an index"""
GUARD = 256

Ints = np.ndarray[Any, np.dtype[Any]]


class Heap:
    """Allocations at increasing addresses, 256-byte aligned, with guard gaps; freed ranges are never used again."""

    def __init__(self) -> None:
        self.bytes = np.full(1 << 20, POISON, np.uint8)
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.top = 0

    def allocate(self, nbytes: int) -> int:
        """Address of a new poisoned allocation."""
        start = self.top
        self.top = (start + nbytes + GUARD + 255) // 256 * 256
        if self.top > len(self.bytes):
            grown = np.full(max(self.top, 2 * len(self.bytes)), POISON, np.uint8)
            grown[: len(self.bytes)] = self.bytes
            self.bytes = grown
        self.starts.append(start)
        self.ends.append(start + nbytes)
        return BASE + start

    def free(self, address: int) -> None:
        """Further access is an error."""
        at = self.starts.index(address - BASE)
        self.ends[at] = self.starts[at]

    def poison(self, address: int, nbytes: int) -> None:
        """Forget the contents of a range."""
        self.bytes[address - BASE : address - BASE + nbytes] = POISON

    def view(self, address: int, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a range, writable; valid until the next allocation."""
        self.check(np.array([address], np.uint64), nbytes)
        return self.bytes[address - BASE : address - BASE + nbytes]

    def check(self, addresses: Ints, nbytes: int) -> Ints:
        """Offsets into `bytes`; PtxError names the first address outside any allocation."""
        offsets = addresses.astype(np.int64) - BASE
        low, high = int(offsets.min()), int(offsets.max()) + nbytes
        at = int(np.searchsorted(self.starts, low, side="right")) - 1
        if at >= 0 and high <= self.ends[at]:
            return offsets
        found = np.searchsorted(self.starts, offsets, side="right") - 1
        good = (found >= 0) & (offsets + nbytes <= np.asarray([*self.ends, 0])[found])
        if not good.all():
            bad = int(np.flatnonzero(~good)[0])
            raise PtxError(self.describe(int(addresses[bad]), nbytes) + f" (first of {int((~good).sum())} lanes)")
        return offsets

    def describe(self, address: int, nbytes: int) -> str:
        """Where an address outside every allocation lies."""
        offset = address - BASE
        at = int(np.searchsorted(self.starts, offset, side="right")) - 1
        if at < 0:
            return f"access of {nbytes} bytes at {address:#x}, which is no device address"
        size = self.ends[at] - self.starts[at]
        return f"access of {nbytes} bytes at offset {offset - self.starts[at]} of an allocation of {size} bytes"
