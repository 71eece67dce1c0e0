"""Tensor maps (TMA descriptors) of the emulated device: 128 bytes, as CUtensorMap, but with a layout of our own.

Meaning: CUDA driver API, cuTensorMapEncodeTiled; PTX ISA section 5.5 (tensors). Innermost dimension first.
"""
from __future__ import annotations

import struct
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.emulator.parse import PtxError

MAGIC = b"bwtensor"
FORM = struct.Struct("<8sQBBH5I4Q5H")
SWIZZLES = (0, 32, 64, 128)


class TensorMap(msgspec.Struct, frozen=True):
    """A tiled tensor of up to five dimensions. `strides` are in bytes, of all dimensions but the innermost; `box` is
    the tile that one copy moves; `swizzle` is 0 or the span in bytes whose 16-byte chunks change places in shared
    memory."""

    address: int
    itemsize: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0

    def encode(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The descriptor, uint8 [128]. PtxError names what the hardware would refuse."""
        rank = len(self.dims)
        wrong = self.fault(rank)
        if wrong:
            raise PtxError(f"tensor map: {wrong}")
        dims, box = self.dims + (1,) * (5 - rank), self.box + (1,) * (5 - rank)
        strides = self.strides + (0,) * (5 - len(self.strides) - 1)
        raw = FORM.pack(MAGIC, self.address, rank, self.itemsize, self.swizzle, *dims, *strides, *box)
        return np.frombuffer(raw.ljust(128, b"\0"), np.uint8)

    def fault(self, rank: int) -> str:
        if not 1 <= rank <= 5 or len(self.box) != rank or len(self.strides) != rank - 1:
            return "1 to 5 dims, as many box sizes, and one stride less are needed"
        if self.itemsize not in (1, 2, 4, 8):
            return f"elements of {self.itemsize} bytes"
        if self.address % 16:
            return "the address is no multiple of 16"
        if any(s % 16 or not 0 < s < 1 << 40 for s in self.strides):
            return "strides must be positive multiples of 16 below 2**40"
        if any(not 1 <= b <= 256 for b in self.box) or any(d < 1 for d in self.dims):
            return "box sizes must be 1 to 256, dims at least 1"
        inner = self.box[0] * self.itemsize
        if inner % 16:
            return f"the innermost box size is {inner} bytes, no multiple of 16"
        if self.swizzle not in SWIZZLES or (self.swizzle and inner > self.swizzle):
            return f"a box of {inner} bytes inside does not fit swizzle {self.swizzle}"
        return ""

    def places(self, coordinates: tuple[int, ...]) -> tuple[Any, Any]:
        """(byte addresses, whether inside the tensor), each [bytes of the box], in the box's order."""
        at, inside = np.zeros(1, np.int64), np.ones(1, bool)
        for c, dim, stride, size in reversed(list(zip(coordinates, self.dims, (self.itemsize, *self.strides), self.box,
                                                      strict=True))):
            index = c + np.arange(size)
            at = (at[:, None] + index * stride).reshape(-1)
            inside = (inside[:, None] & ((index >= 0) & (index < dim))).reshape(-1)
        at = (self.address + at[:, None] + np.arange(self.itemsize)).reshape(-1)
        return at, np.repeat(inside, self.itemsize)

    def swizzled(self, start: int) -> Any:
        """Offsets in shared memory of the bytes of a box that begins at `start`: in each 128 bytes of address, the
        chunk index is combined with the row's low bits by exclusive or."""
        at = start + np.arange(int(np.prod(self.box)) * self.itemsize)
        mask = {0: 0, 32: 1, 64: 3, 128: 7}[self.swizzle]
        return at ^ ((at >> 7 & mask) << 4)


def decode(raw: bytes) -> TensorMap:
    """The tensor map in 128 bytes. PtxError: there is none."""
    if len(raw) != 128 or raw[:8] != MAGIC:
        raise PtxError("the address holds no tensor map of the emulated device")
    _, address, rank, itemsize, swizzle, *rest = FORM.unpack_from(raw)
    return TensorMap(address, itemsize, tuple(rest[:rank]), tuple(rest[5 : 4 + rank]), tuple(rest[9 : 9 + rank]),
                     swizzle)
