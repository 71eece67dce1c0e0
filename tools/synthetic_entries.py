"""Tensors of random weights: what is written of each, and the bytes that fill it. Part of tools/synthetic.py."""
from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import ml_dtypes
import msgspec
import numpy as np

SCALES = {"Q4_K": ((0, 1e-4), (2, 7.5e-4)), "Q5_K": ((0, 5e-5), (2, 7.5e-4)), "Q6_K": ((208, 1.5e-5),),
          "Q8_0": ((0, 2.7e-4),), "Q4_0": ((0, 4.3e-3),)}
"""byte offset in a block and value of each half-precision scale"""
POOL = 1 << 17
"""distinct random blocks or numbers; larger tensors repeat them"""
STEP = 7919
"""from so many blocks later each tensor begins"""
ITEM = {"BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1}

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Entry(msgspec.Struct, frozen=True):
    """A tensor to write: its type as the file calls it, its shape (of GGUF blocks: in weights), and which pool fills
    it: "=X" is a float32 number."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: str

    def nbytes(self) -> int:
        if self.dtype in ITEM:
            return math.prod(self.shape) * ITEM[self.dtype]
        size, nbytes = block_of(self.dtype)
        return math.prod(self.shape) // size * nbytes


def block_of(kind: str) -> tuple[int, int]:
    """Weights and bytes of one GGUF block."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return size, nbytes


class Pools:
    """Random bytes of each kind, drawn once; `write` repeats them."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.pools: dict[str, tuple[Bytes, int]] = {}
        self.turn = 0

    def write(self, out: BinaryIO, fill: str, nbytes: int) -> None:
        """So many bytes of one kind, beginning at another block each time."""
        if fill not in self.pools:
            blocks = np.ascontiguousarray(self.make(fill))
            self.pools[fill] = blocks.view(np.uint8).reshape(-1), blocks.nbytes // len(blocks)
        pool, block = self.pools[fill]
        self.turn += 1
        at = self.turn * STEP * block % len(pool)
        while nbytes:
            part = pool[at : at + nbytes]
            out.write(part.data)
            nbytes -= len(part)
            at = 0

    def make(self, fill: str) -> np.ndarray[Any, Any]:
        """A pool, blocks along its first axis."""
        if fill.startswith("="):
            return np.full(1, float(fill[1:]), np.float32)
        if fill in SCALES:
            blocks = self.random.integers(0, 256, (POOL, block_of(fill)[1]), np.uint8)
            for at, value in SCALES[fill]:
                blocks[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
            return blocks
        normal = self.random.standard_normal(POOL, np.float32)
        uniform = self.random.random(POOL, np.float32)
        return {
            "F32": lambda: 0.02 * normal,
            "BF16": lambda: (0.02 * normal).astype(ml_dtypes.bfloat16),
            "one BF16": lambda: np.ones(POOL, ml_dtypes.bfloat16),
            "zero BF16": lambda: np.zeros(POOL, ml_dtypes.bfloat16),
            "tap F32": lambda: 0.5 * normal,
            "tap BF16": lambda: (0.5 * normal).astype(ml_dtypes.bfloat16),
            "E2M1": lambda: self.random.integers(0, 256, 32 * POOL, np.uint8),
            "E4M3": lambda: np.clip(100 * normal, -448, 448).astype(ml_dtypes.float8_e4m3fn),
            "NVFP4 scale": lambda: (100 + 200 * uniform).astype(ml_dtypes.float8_e4m3fn),
            "block scale": lambda: (1e-4 + 2e-4 * uniform).astype(ml_dtypes.bfloat16),
        }[fill]()


def linear(layout: str, module: str, rows: int, cols: int) -> Iterator[Entry]:
    """The stored tensors of one projection [rows, cols]."""
    if layout == "hf-bf16":
        yield Entry(f"{module}.weight", "BF16", (rows, cols), "BF16")
    elif layout == "hf-nvfp4":
        yield Entry(f"{module}.weight", "U8", (rows, cols // 2), "E2M1")
        yield Entry(f"{module}.weight_scale", "F8_E4M3", (rows, cols // 16), "NVFP4 scale")
        yield Entry(f"{module}.weight_scale_2", "F32", (), "=3.4e-5")
        yield Entry(f"{module}.input_scale", "F32", (), "=4e-3")
    elif layout == "hf-fp8":
        yield Entry(f"{module}.weight", "F8_E4M3", (rows, cols), "E4M3")
        yield Entry(f"{module}.weight_scale", "F32", (), "=2e-4")
        yield Entry(f"{module}.input_scale", "F32", (), "=2e-2")
    else:
        yield Entry(f"{module}.weight", "F8_E4M3", (rows, cols), "E4M3")
        yield Entry(f"{module}.weight_scale_inv", "BF16", (-(-rows // 128), -(-cols // 128)), "block scale")
