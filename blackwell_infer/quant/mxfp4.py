"""MXFP4 and MXFP8: E2M1 or E4M3 codes under one power of two per 32 elements (OCP Microscaling Formats 1.0)."""
from __future__ import annotations

import numpy as np

from blackwell_infer.errors import CheckpointError
from blackwell_infer.quant.format import Weight
from blackwell_infer.quant.packed import E8M0, Packed, Values, halves_to_pairs, pairs_to_halves

GROUP = 32
GGUF_BYTES = 17


class Mxfp4(Packed):
    """MXFP4 whose raw form is that of GGUF: per 32 elements a scale and 16 bytes, byte j of elements j and j + 16."""

    def __init__(self) -> None:
        super().__init__("mxfp4", nibbles=True, group=GROUP, table=E8M0)

    def read(self, data: Values, shape: tuple[int, int]) -> Weight:
        """GGUF blocks (uint8, 1-D) -> Weight; a permutation of nibbles, copied. CheckpointError if misshapen."""
        rows, cols = shape
        if cols % GROUP:
            raise CheckpointError(f"{cols} columns are no multiple of the {GROUP} elements of a mxfp4 block")
        need = rows * cols // GROUP * GGUF_BYTES
        if data.size != need:
            raise CheckpointError(f"a {list(shape)} mxfp4 matrix takes {need} bytes, not {data.size}")
        blocks = data.reshape(-1, GGUF_BYTES)
        codes = halves_to_pairs(blocks[:, 1:]).reshape(rows, cols // 2)
        return self.pack(shape, codes, np.ascontiguousarray(blocks[:, 0]).reshape(rows, cols // GROUP))


def gguf_blocks(w: Weight) -> Values:
    """A "mxfp4" Weight as GGUF stores it, uint8 [rows, cols / 32 * 17]."""
    rows, cols = w.shape
    out = np.empty((rows, cols // GROUP, GGUF_BYTES), np.uint8)
    out[:, :, 0] = np.asarray(w.parts[1])
    out[:, :, 1:] = pairs_to_halves(np.asarray(w.parts[0]).reshape(rows, -1, 16))
    return out.reshape(rows, -1)


MXFP4 = Mxfp4()
MXFP8 = Packed("mxfp8", nibbles=False, group=GROUP, table=E8M0)
