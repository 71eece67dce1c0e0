"""A view of device memory: four fields, contiguous, no operations."""
from __future__ import annotations

from typing import Any

import msgspec
import numpy as np


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """Contiguous row-major device memory at address `ptr`. `base` keeps the block alive that the memory belongs to."""

    ptr: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    base: object

    @property
    def size(self) -> int:
        """Number of elements."""
        n = 1
        for s in self.shape:
            n *= s
        return n

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def reshape(self, *shape: int) -> Tensor:
        """The same memory with another shape of as many elements; one axis may be -1."""
        if -1 in shape:
            known = 1
            for s in shape:
                known *= s if s != -1 else 1
            shape = tuple(self.size // known if s == -1 else s for s in shape)
        other = Tensor(self.ptr, tuple(shape), self.dtype, self.base)
        if other.size != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return other

    def view(self, dtype: Any) -> Tensor:
        """The same bytes as elements of another type along the last axis."""
        kind = np.dtype(dtype)
        width = self.shape[-1] * self.dtype.itemsize
        if width % kind.itemsize or self.ptr % kind.itemsize:
            raise ValueError(f"{width} bytes at {self.ptr:#x} are no whole {kind.name}")
        return Tensor(self.ptr, (*self.shape[:-1], width // kind.itemsize), kind, self.base)

    def __getitem__(self, index: int | slice) -> Tensor:
        """Index or slice the leading axis (step 1)."""
        row = self.nbytes // self.shape[0] if self.shape[0] else 0
        if isinstance(index, slice):
            start, stop, step = index.indices(self.shape[0])
            if step != 1:
                raise IndexError("a Tensor slice has step 1")
            return Tensor(self.ptr + start * row, (max(stop - start, 0), *self.shape[1:]), self.dtype, self.base)
        if not -self.shape[0] <= index < self.shape[0]:
            raise IndexError(f"index {index} out of range for shape {self.shape}")
        return Tensor(self.ptr + index % self.shape[0] * row, self.shape[1:], self.dtype, self.base)
