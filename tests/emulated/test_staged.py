"""A small matmul of one row that stages it itself gives the bits of one whose row was staged before."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.ops import inputs
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.ops.cuda.staged import Staged, staged


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("k", [256, 1280, 8448])
def test_a_row_of_its_own_gives_the_bits_of_a_staged_one(emulated: Callable[..., EmulatedQueue], k: int, bad: bool,
                                                         dtype: str) -> None:
    queue, rng = emulated("sm_90a"), np.random.default_rng(1)
    ops = CudaOps(queue)
    x = inputs.activations(rng, (1, k), dtype, ((0, float("inf")),) if bad else ())
    found = inputs.weight(rng, "q4_k_fragments", 40, k)
    w = (inputs.Weight(found.format, found.shape, tuple(queue.put(np.asarray(p)) for p in found.parts)),)
    with queue.step():
        row = queue.put(x)
        prepared = staged(queue, row)
        assert isinstance(prepared, Staged)
        alone, before = (queue.download(ops.linear(h, w)).result() for h in (row, prepared))
    assert np.array_equal(alone, before, equal_nan=True)
