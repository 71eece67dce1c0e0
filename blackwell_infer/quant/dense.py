"""Dense matrices: one number per element, rows contiguous, little-endian."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from blackwell_infer.errors import CheckpointError
from blackwell_infer.quant.format import Layout, Weight


class Dense:
    """A dense format; its one part is [rows, cols] of `dtype`."""

    def __init__(self, name: str, dtype: np.dtype[Any]) -> None:
        self.name = name
        self.dtype = dtype
        self.block = 1
        self.block_bytes = dtype.itemsize

    def layout(self, shape: tuple[int, int]) -> Layout:
        """The matrix itself."""
        return ((shape, self.dtype),)

    def joins(self, shapes: tuple[tuple[int, int], ...]) -> bool:
        """Any matrices join."""
        return True

    def read(self, data: np.ndarray[Any, Any], shape: tuple[int, int]) -> Weight:
        """View `data` (uint8, 1-D, any alignment) as [rows, cols]. CheckpointError if the sizes disagree."""
        rows, cols = shape
        need = rows * cols * self.block_bytes
        if data.size != need:
            raise CheckpointError(f"a [{rows}, {cols}] {self.name} matrix takes {need} bytes, not {data.size}")
        return Weight(self.name, shape, (data.view(self.dtype).reshape(rows, cols),))

    def take_rows(self, w: Weight, rows: np.ndarray[Any, Any]) -> Weight:
        """The given rows in that order, copied."""
        return Weight(self.name, (len(rows), w.shape[1]), (np.asarray(w.parts[0])[rows],))

    def concat(self, ws: tuple[Weight, ...]) -> Weight:
        """All rows of all inputs, copied."""
        data = np.concatenate([np.asarray(w.parts[0]) for w in ws])
        return Weight(self.name, (data.shape[0], data.shape[1]), (data,))

    def dequantize(self, w: Weight) -> np.ndarray[Any, Any]:
        """float32 [rows, cols]; exact for every dense format. Aligned float32 is not copied."""
        return np.require(w.parts[0], np.float32, "A")


F32 = Dense("f32", np.dtype("<f4"))
F16 = Dense("f16", np.dtype("<f2"))
BF16 = Dense("bf16", np.dtype(ml_dtypes.bfloat16))
