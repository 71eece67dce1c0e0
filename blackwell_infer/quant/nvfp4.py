"""NVFP4: E2M1 codes, an E4M3 scale per 16 elements, a float32 factor per matrix (here per row).

Sources: the tensor layout of ModelOpt and compressed-tensors checkpoints, and GGUF type 40. The checkpoint readers
bring all of them to one layout without changing a value (`packed.Packed` lists the parts).
"""
from __future__ import annotations

import numpy as np

from blackwell_infer.errors import CheckpointError
from blackwell_infer.quant.format import Weight
from blackwell_infer.quant.packed import E4M3, Packed, Values, halves_to_pairs, pairs_to_halves

GROUP = 16
GGUF_BLOCK, GGUF_BYTES = 64, 36


class Nvfp4(Packed):
    """NVFP4 whose raw form is that of GGUF: 36 bytes per 64 elements, scales of 4 sub-blocks, then 4 times 8 bytes."""

    def __init__(self) -> None:
        super().__init__("nvfp4", nibbles=True, group=GROUP, table=E4M3, factors=True, inputs=True)

    def read(self, data: Values, shape: tuple[int, int]) -> Weight:
        """GGUF blocks (uint8, 1-D) -> Weight with factors 1; a permutation of nibbles, copied.

        The scale byte 0x7F stands for 0 there. CheckpointError if cols or the size do not fit, or a scale is negative.
        """
        rows, cols = shape
        if cols % GGUF_BLOCK:
            raise CheckpointError(f"{cols} columns are no multiple of the {GGUF_BLOCK} elements of a nvfp4 block")
        need = rows * cols // GGUF_BLOCK * GGUF_BYTES
        if data.size != need:
            raise CheckpointError(f"a {list(shape)} nvfp4 matrix takes {need} bytes, not {data.size}")
        blocks = data.reshape(-1, GGUF_BYTES)
        scales = blocks[:, :4].reshape(rows, cols // GROUP)
        codes = halves_to_pairs(blocks[:, 4:].reshape(-1, 8)).reshape(rows, cols // 2)
        scales = np.where(scales == 0x7F, np.uint8(0), scales)
        if (scales > 0x7F).any():
            raise CheckpointError(f"a {list(shape)} nvfp4 matrix holds negative scales; they are unsigned")
        return self.pack(shape, codes, scales, np.ones(rows, np.float32), np.zeros(1, np.float32))


def gguf_blocks(w: Weight) -> Values:
    """The codes and scales of a "nvfp4" Weight as GGUF stores them, uint8 [rows, cols / 64 * 36]; factors are left out.

    CheckpointError if cols are no multiple of 64, or a scale is NaN, which that layout cannot say.
    """
    rows, cols = w.shape
    codes, scales = np.asarray(w.parts[0]), np.asarray(w.parts[1])
    if cols % GGUF_BLOCK or (scales == 0x7F).any():
        raise CheckpointError(f"a {list(w.shape)} nvfp4 matrix does not fit GGUF blocks of {GGUF_BLOCK} elements, or "
                              "holds scales that are NaN")
    out = np.empty((rows, cols // GGUF_BLOCK, GGUF_BYTES), np.uint8)
    out[:, :, :4] = scales.reshape(rows, -1, 4)
    out[:, :, 4:] = pairs_to_halves(codes.reshape(-1, 8)).reshape(rows, -1, 32)
    return out.reshape(rows, -1)


NVFP4 = Nvfp4()
NVFP4_F16 = Packed("nvfp4_f16", nibbles=True, group=GROUP, factors=True)
"""E2M1 codes under float16 scales, which need not be E4M3 numbers: the row-wise pack of Lynn releases."""
