"""FP8: E4M3 codes under one factor per matrix or per row ("fp8"), or per block of 128 x 128 ("fp8_block")."""
from __future__ import annotations

import numpy as np

from blackwell_infer.errors import CheckpointError
from blackwell_infer.quant.format import Layout, Weight
from blackwell_infer.quant.packed import BYTE, CHUNK, E4M3, SINGLE, Packed, Values, describe, split

SIDE = 128

FP8 = Packed("fp8", nibbles=False, factors=True, inputs=True)


class Fp8Block:
    """Parts: codes uint8 [N, K]; scales float32 [ceil(N/128), ceil(K/128)]; value = code * scale[n // 128, k // 128].

    Blocks at the right and lower edge may be partial. Rows come in blocks of 128, so only whole blocks can be taken,
    and a matrix joins with the next only if its rows are a multiple of 128.
    """

    name = "fp8_block"
    block = 1
    block_bytes = 1

    def layout(self, shape: tuple[int, int]) -> Layout:
        """Shape and dtype of both parts."""
        return (shape, BYTE), ((-(-shape[0] // SIDE), -(-shape[1] // SIDE)), SINGLE)

    def pack(self, shape: tuple[int, int], *parts: Values) -> Weight:
        """A Weight of these parts. CheckpointError if a part has another shape or dtype."""
        wanted, have = self.layout(shape), tuple((part.shape, part.dtype) for part in parts)
        if have != wanted:
            raise CheckpointError(f"a {list(shape)} {self.name} matrix has parts {describe(wanted)}, not "
                                  f"{describe(have)}")
        return Weight(self.name, shape, parts)

    def read(self, data: Values, shape: tuple[int, int]) -> Weight:
        """View `data` (uint8, 1-D) as codes and scales end to end. CheckpointError if the size does not fit."""
        return Weight(self.name, shape, split(self.name, data, shape, self.layout(shape)))

    def joins(self, shapes: tuple[tuple[int, int], ...]) -> bool:
        """Whether `concat` takes matrices of these shapes."""
        return all(rows % SIDE == 0 for rows, _ in shapes[:-1])

    def take_rows(self, w: Weight, rows: Values) -> Weight:
        """Whole blocks of 128 rows, each in order; a partial last block must come last. CheckpointError otherwise."""
        starts = rows[::SIDE]
        whole = np.concatenate([np.arange(s, min(s + SIDE, w.shape[0])) for s in starts]) if len(rows) else rows
        if (starts % SIDE).any() or not np.array_equal(whole, rows):
            raise CheckpointError(f"rows of a {self.name} matrix can only be taken in whole blocks of {SIDE}")
        codes, scales = (np.asarray(part) for part in w.parts)
        return self.pack((len(rows), w.shape[1]), codes[rows], scales[starts // SIDE])

    def concat(self, ws: tuple[Weight, ...]) -> Weight:
        """All rows of all inputs. CheckpointError if one before the last has rows that are no multiple of 128."""
        if not self.joins(tuple(w.shape for w in ws)):
            raise CheckpointError(f"{self.name} matrices of {', '.join(str(w.shape[0]) for w in ws)} rows do not join: "
                                  f"all but the last need a multiple of {SIDE}")
        codes, scales = (np.concatenate([np.asarray(w.parts[i]) for w in ws]) for i in (0, 1))
        return self.pack((sum(w.shape[0] for w in ws), ws[0].shape[1]), codes, scales)

    def dequantize(self, w: Weight) -> Values:
        """float32 [rows, cols], each value rounded once."""
        codes, scales = (np.asarray(part) for part in w.parts)
        rows, cols = w.shape
        out = np.empty(w.shape, np.float32)
        step = max(SIDE, CHUNK // max(cols, 1) // SIDE * SIDE)
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            for i in range(0, rows, step):
                n = min(step, rows - i)
                wide = scales[i // SIDE:-(-(i + n) // SIDE)].repeat(SIDE, axis=0)[:n].repeat(SIDE, axis=1)[:, :cols]
                np.multiply(E4M3[codes[i:i + n]], wide, out=out[i:i + n])
        return out


FP8_BLOCK = Fp8Block()
