"""Matrices of small codes under scales: what NVFP4, MXFP4, MXFP8 and FP8 share.

Element codes: E2M1 (sign, 2 exponent bits, 1 mantissa bit) and E4M3 (finite, 0x7F and 0xFF are NaN); block scales:
E4M3, or E8M0 (byte s is 2^(s - 127), 255 is NaN). Source: OCP Microscaling Formats (MX) 1.0, sections 5.2 to 5.4.
"""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from blackwell_infer.errors import CheckpointError
from blackwell_infer.quant.format import Layout, Weight, layout_bytes

Values = np.ndarray[Any, Any]

CHUNK = 1 << 20
"""Elements decoded at a time: bounds the temporaries to a few megabytes whatever the matrix."""

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
PAIRS = np.stack((E2M1[np.arange(256) & 15], E2M1[np.arange(256) >> 4]), axis=1)         # low nibble first
E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
E8M0 = np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.float32(np.nan)).astype(np.float32)
for _table in (E2M1, PAIRS, E4M3, E8M0):
    _table.flags.writeable = False

BYTE, HALF, SINGLE = np.dtype(np.uint8), np.dtype("<f2"), np.dtype("<f4")


class Packed:
    """A format of codes [N, K/2] (two E2M1, low nibble first) or [N, K] (one E4M3), and of scales.

    Its parts, in this order, where it has them: codes uint8; scales [N, K/group] (bytes that `table` decodes, or
    float16); factors float32 [N], one per row so that fused projections of different factors join; inputs float32 [1],
    the scale that a checkpoint recorded for quantising activations (0: none; of fused projections the largest).
    value = code * scale * factor; code * scale is exact in float32, so a value is rounded at most once.
    """

    def __init__(self, name: str, *, nibbles: bool, group: int = 0, table: Values | None = None, factors: bool = False,
                 inputs: bool = False) -> None:
        self.name = name
        self.per_byte = 2 if nibbles else 1
        self.group = group
        self.table = table
        self.factors = factors
        self.inputs = inputs
        self.block = group or 1
        self.block_bytes = self.block // self.per_byte + (BYTE.itemsize if table is not None else HALF.itemsize) * (
            group > 0)

    def layout(self, shape: tuple[int, int]) -> Layout:
        """Shape and dtype of every part."""
        rows, cols = shape
        parts: list[tuple[tuple[int, ...], np.dtype[Any]]] = [((rows, cols // self.per_byte), BYTE)]
        if self.group:
            parts.append(((rows, cols // self.group), HALF if self.table is None else BYTE))
        if self.factors:
            parts.append(((rows,), SINGLE))
        if self.inputs:
            parts.append(((1,), SINGLE))
        return tuple(parts)

    def pack(self, shape: tuple[int, int], *parts: Values) -> Weight:
        """A Weight of these parts. CheckpointError if cols do not fit, or a part has another shape or dtype."""
        if shape[1] % self.block:
            raise CheckpointError(f"{shape[1]} columns are no multiple of the {self.block} elements of a {self.name} "
                                  "block")
        wanted = self.layout(shape)
        have = tuple((part.shape, part.dtype) for part in parts)
        if have != wanted:
            raise CheckpointError(f"a {list(shape)} {self.name} matrix has parts {describe(wanted)}, not "
                                  f"{describe(have)}")
        return Weight(self.name, shape, parts)

    def read(self, data: Values, shape: tuple[int, int]) -> Weight:
        """View `data` (uint8, 1-D) as the parts end to end. CheckpointError if cols or the size do not fit."""
        if shape[1] % self.block:
            raise CheckpointError(f"{shape[1]} columns are no multiple of the {self.block} elements of a {self.name} "
                                  "block")
        return Weight(self.name, shape, split(self.name, data, shape, self.layout(shape)))

    def joins(self, shapes: tuple[tuple[int, int], ...]) -> bool:
        """Rows are independent: any matrices join."""
        return True

    def take_rows(self, w: Weight, rows: Values) -> Weight:
        """The given rows in that order, copied as bytes: no value changes."""
        count = len(w.parts) - self.inputs
        parts = (*(np.asarray(part)[rows] for part in w.parts[:count]), *w.parts[count:])
        return Weight(self.name, (len(rows), w.shape[1]), parts)

    def concat(self, ws: tuple[Weight, ...]) -> Weight:
        """All rows of all inputs, copied as bytes; the largest input scale."""
        columns = [[np.asarray(part) for part in parts] for parts in zip(*(w.parts for w in ws), strict=True)]
        count = len(columns) - self.inputs
        parts = (*(np.concatenate(column) for column in columns[:count]),
                 *(np.max(column, axis=0) for column in columns[count:]))
        return Weight(self.name, (sum(w.shape[0] for w in ws), ws[0].shape[1]), parts)

    def dequantize(self, w: Weight) -> Values:
        """float32 [rows, cols]. Codes and scales that are NaN give NaN."""
        rows, cols = w.shape
        parts = [np.asarray(part) for part in w.parts]
        factors = parts[1 + (self.group > 0)] if self.factors else None
        out = np.empty(w.shape, np.float32)
        step = max(1, CHUNK // max(cols, 1))
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            for i in range(0, rows, step):
                at = slice(i, i + step)
                values = (PAIRS if self.per_byte == 2 else E4M3)[parts[0][at]]
                if self.group:
                    scales = parts[1][at].astype(np.float32) if self.table is None else self.table[parts[1][at]]
                    values = values.reshape(*scales.shape, self.group) * scales[:, :, None]
                out[at] = values.reshape(-1, cols)
                if factors is not None:
                    out[at] *= factors[at, None]
        return out


def split(name: str, data: Values, shape: tuple[int, int], layout: Layout) -> tuple[Values, ...]:
    """`data` (uint8, 1-D) cut into parts of this layout; CheckpointError if it has another size."""
    need = layout_bytes(layout)
    if data.size != need:
        raise CheckpointError(f"a {list(shape)} {name} matrix takes {need} bytes, not {data.size}")
    parts, start = [], 0
    for part, dtype in layout:
        size = layout_bytes(((part, dtype),))
        parts.append(data[start:start + size].view(dtype).reshape(part))
        start += size
    return tuple(parts)


def describe(layout: Layout) -> str:
    return " + ".join(f"{dtype.name}{list(shape)}" for shape, dtype in layout)


def halves_to_pairs(packed: Values) -> Values:
    """uint8 [..., b] of a GGUF block, byte j holding elements j (low) and j + b (high) -> byte j holding 2j, 2j + 1."""
    even, odd = packed[..., 0::2], packed[..., 1::2]
    return np.concatenate(((even & 15) | (odd << 4), (even >> 4) | (odd & 0xF0)), axis=-1)


def pairs_to_halves(packed: Values) -> Values:
    """The inverse of `halves_to_pairs`."""
    half = packed.shape[-1] // 2
    low, high = packed[..., :half], packed[..., half:]
    out = np.empty_like(packed)
    out[..., 0::2] = (low & 15) | (high << 4)
    out[..., 1::2] = (low >> 4) | (high & 0xF0)
    return out
