"""Matrices of self-contained blocks along the columns: what every GGUF quantisation shares."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from blackwell_infer.errors import CheckpointError
from blackwell_infer.quant.format import Layout, Weight

CHUNK = 1 << 20
"""Elements decoded at a time: bounds the temporaries to a few tens of megabytes whatever the matrix."""


class Blocks:
    """A block format; its one part is uint8 [rows, cols / block * block_bytes], the blocks exactly as in the file.

    `decode` maps whole blocks, uint8 [n, block_bytes], to float32 [n, block].
    """

    def __init__(
        self,
        name: str,
        block: int,
        block_bytes: int,
        decode: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
    ) -> None:
        self.name = name
        self.block = block
        self.block_bytes = block_bytes
        self.decode = decode

    def layout(self, shape: tuple[int, int]) -> Layout:
        """Rows of blocks."""
        rows, cols = shape
        return (((rows, cols // self.block * self.block_bytes), np.dtype(np.uint8)),)

    def joins(self, shapes: tuple[tuple[int, int], ...]) -> bool:
        """Any matrices join."""
        return True

    def read(self, data: np.ndarray[Any, Any], shape: tuple[int, int]) -> Weight:
        """View `data` (uint8, 1-D) as rows of blocks. CheckpointError if cols or the size do not fit."""
        rows, cols = shape
        if cols % self.block:
            raise CheckpointError(f"{cols} columns are no multiple of the {self.block} elements of a {self.name} block")
        width = cols // self.block * self.block_bytes
        if data.size != rows * width:
            raise CheckpointError(f"a [{rows}, {cols}] {self.name} matrix takes {rows * width} bytes, not {data.size}")
        return Weight(self.name, shape, (data.reshape(rows, width),))

    def take_rows(self, w: Weight, rows: np.ndarray[Any, Any]) -> Weight:
        """The given rows in that order, copied as bytes: no value changes."""
        return Weight(self.name, (len(rows), w.shape[1]), (np.asarray(w.parts[0])[rows],))

    def concat(self, ws: tuple[Weight, ...]) -> Weight:
        """All rows of all inputs, copied as bytes."""
        data = np.concatenate([np.asarray(w.parts[0]) for w in ws])
        return Weight(self.name, (data.shape[0], ws[0].shape[1]), (data,))

    def dequantize(self, w: Weight) -> np.ndarray[Any, Any]:
        """float32 [rows, cols]. Scales that are infinite or NaN in the file give infinite or NaN values."""
        out = np.empty(w.shape, np.float32)
        data = np.asarray(w.parts[0])
        rows, cols = w.shape
        step = max(1, CHUNK // max(cols, 1))
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, rows, step):
                blocks = data[start:start + step].reshape(-1, self.block_bytes)
                out[start:start + step] = self.decode(blocks).reshape(-1, cols)
        return out


def half(blocks: np.ndarray[Any, Any], at: int) -> np.ndarray[Any, Any]:
    """The little-endian half-precision number at byte `at` of every block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at:at + 2]).view("<f2").astype(np.float32)
