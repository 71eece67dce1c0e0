"""Weights and the formats that describe their bytes. NumPy only: nothing here knows a device."""
from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import msgspec
import numpy as np

from blackwell_infer.types import Array


class Weight(msgspec.Struct, frozen=True):
    """A matrix [rows, cols] in some format. `parts` are the format's arrays, on the host or on a device.

    Dense formats ("f32", "f16", "bf16") have one part [rows, cols] of that dtype. GGUF block formats ("q8_0", "q4_0",
    "q4_k", "q5_k", "q6_k") have one uint8 part [rows, bytes of a row]: the blocks exactly as in the file.
    Formats of several parts ("nvfp4", "nvfp4_f16", "mxfp4", "mxfp8", "fp8", "fp8_block") say which in their modules.
    `format` is the key of every dispatch table.
    """

    format: str
    shape: tuple[int, int]
    parts: tuple[Array, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts, scales and metadata included."""
        return sum(int(np.prod(p.shape)) * p.dtype.itemsize for p in self.parts)


Layout = tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
"""Shape and dtype of every part of a Weight"""


def layout_bytes(layout: Layout) -> int:
    """Bytes of all parts."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout)


class Quantized(msgspec.Struct, frozen=True):
    """Activations [tokens, cols] in small codes under scales: made by `ops.quantize` for `ops.linear_quantized`.

    Parts by format: "nvfp4": codes uint8 [T, K/2] (E2M1, low nibble first), E4M3 scales per 16 in tiles
    (quant/tiled.py), factor float32 [1]. "mxfp8": codes uint8 [T, K] (E4M3), E8M0 scales per 32 in tiles. "fp8": codes
    uint8 [T, K], factors float32 [T]. "fp8_block": codes uint8 [T, K], scales float32 [T, ceil(K/128)].
    """

    format: str
    shape: tuple[int, int]
    parts: tuple[Array, ...]


PAIRED: Mapping[str, str] = MappingProxyType({
    "nvfp4": "nvfp4_tiled", "mxfp8": "mxfp8_tiled", "fp8": "fp8_w8a8", "fp8_block": "fp8_block_w8a8"})
"""What weights are called that meet activations in codes of the same kind (W4A4, W8A8), by the format that both have.
The name is the choice: `ops.linear` quantises what meets such a weight. No checkpoint stores them."""
QUANTISES: Mapping[str, str] = MappingProxyType({name: form for form, name in PAIRED.items()})
"""The format of activations that such a weight takes"""
INPUT_SCALES: Mapping[str, int] = MappingProxyType({PAIRED["nvfp4"]: 3, PAIRED["fp8"]: 2})
"""Which part of a weight is the recorded scale of its inputs"""


def input_scale(w: Weight) -> Array | None:
    """The scale that a checkpoint recorded for quantising what meets this weight, float32 [1] (0: none)."""
    at = INPUT_SCALES.get(w.format)
    return None if at is None else w.parts[at]


Linear = tuple[Weight, ...]
"""Row blocks of one projection (q, k and v of a fused qkv may differ in format); outputs stand side by side."""


class Experts(msgspec.Struct, frozen=True):
    """One matrix of each expert, stacked: `weight` [count * N, K], expert e in rows e N to (e + 1) N.

    Of a gate and up projection in one, the rows of an expert are [gate I | up I].
    """

    weight: Weight
    count: int

    @property
    def rows(self) -> int:
        """N, the rows of one expert."""
        return self.weight.shape[0] // self.count


class Format(Protocol):
    """One way to store a matrix [rows, cols]. Blocks run along cols, so any set of rows is a valid matrix."""

    name: str
    block: int
    """Elements of one block along cols (1 for dense formats); cols must be a multiple."""
    block_bytes: int

    def layout(self, shape: tuple[int, int]) -> Layout:
        """Shape and dtype of every part of a matrix of this shape."""
        ...

    def read(self, data: np.ndarray[Any, Any], shape: tuple[int, int]) -> Weight:
        """A Weight of the bytes (uint8, 1-D, memory-mapped) of a container that keeps the matrix in one piece; of the
        parts end to end where no container does. Without copying where the layouts agree. CheckpointError if
        misshapen."""
        ...

    def joins(self, shapes: tuple[tuple[int, int], ...]) -> bool:
        """Whether `concat` takes matrices of these shapes."""
        ...

    def take_rows(self, w: Weight, rows: np.ndarray[Any, Any]) -> Weight:
        """The matrix of the given rows, in that order (permutations and shards)."""
        ...

    def concat(self, ws: tuple[Weight, ...]) -> Weight:
        """One matrix of all rows; every input has this format and the same cols."""
        ...

    def dequantize(self, w: Weight) -> np.ndarray[Any, Any]:
        """float32 [rows, cols]: the reference meaning of the bytes."""
        ...
