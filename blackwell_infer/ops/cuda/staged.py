"""Activations that also lie ready as operands of the small and medium matmuls (ptx/include/stage.cuh)."""
from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.kernels.cost import moved
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.quant.lanes import COLS
from blackwell_infer.types import Array

FEW_ROWS, MOST_ROWS, GROUP = 16, 256, 32
"""Most rows of the small matmuls and of the medium ones, and rows whose blocks lie together"""
ACT = {"float16": "f16", "bfloat16": "bf16"}

STAGE = Kernel("linear/stage.cu", "stage", (
    Param("x", "in"), Param("out", "out", "uint8"), Param("M", "i32"), Param("K", "i32")), {"ACT": tuple(ACT.values())},
    cost=moved)
KERNELS = (STAGE,)


class Staged(msgspec.Struct, frozen=True, gc=False):
    """`rows` [M, K], and the same as `blocks` of 256 columns of up to 32 rows.

    An Array like `rows`: what is taken of it are rows."""

    rows: Tensor
    blocks: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.rows.dtype

    def reshape(self, *shape: int) -> Tensor:
        return self.rows.reshape(*shape)

    def view(self, dtype: Any) -> Tensor:
        return self.rows.view(dtype)

    def __getitem__(self, index: int | slice) -> Tensor:
        return self.rows[index]


def block_bytes(m: int) -> int:
    """Bytes of a block of m rows (ptx/include/stage.cuh)."""
    return 544 * m + -(-4 * m // 16) * 16 + 16


def room(q: Queue, x: Tensor) -> Tensor | None:
    """Memory for the blocks of x, or None where no small or medium matmul would read them: too many rows, float32."""
    return memory(q, x) if 0 < x.shape[0] <= MOST_ROWS and x.dtype.name in ACT else None


def memory(q: Queue, x: Tensor) -> Tensor:
    """For the blocks of x, up to 32 rows in each."""
    m, k = x.shape
    size = m // GROUP * block_bytes(GROUP) + (block_bytes(m % GROUP) if m % GROUP else 0)
    return q.empty((-(-k // COLS) * size,), np.uint8)


def together(rows: Tensor, blocks: Tensor | None) -> Array:
    """Rows with their blocks where they have some."""
    return rows if blocks is None else Staged(rows, blocks)


def staged(q: Queue, x: Array) -> Staged:
    """x [M, K], M from 1 to 256, with its blocks, made here if it comes without."""
    if isinstance(x, Staged):
        return x
    assert isinstance(x, Tensor)
    (m, k), blocks = x.shape, memory(q, x)
    assert 0 < m <= MOST_ROWS
    q.launch(STAGE.variant(ACT=ACT[x.dtype.name]), (-(-k // COLS), m, 1), (32, 1, 1), x, blocks, m, k, pdl=True)
    return Staged(x, blocks)


def plain(x: Array) -> Tensor:
    """The rows alone: what a launch takes."""
    found = x.rows if isinstance(x, Staged) else x
    assert isinstance(found, Tensor)
    return found
