"""What the producers of activations write as operands of the small and medium matmuls is what `stage` makes of their
rows, byte for byte, in groups of 32 rows and what remains."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.ops import inputs
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.ops.cuda.staged import Staged, staged
from blackwell_infer.types import Array


@pytest.mark.parametrize("rows", [1, 16, 17, 32, 70])
@pytest.mark.parametrize("width", [512, 328])
@pytest.mark.parametrize("producer", ["rms_norm", "add_rms_norm", "swiglu"])
def test_blocks_of_a_producer(emulated: Callable[..., EmulatedQueue], producer: str, width: int, rows: int) -> None:
    queue, rng = emulated("sm_90a"), np.random.default_rng(1)
    ops = CudaOps(queue)
    odd = ((rows - 1, float("inf")), (0, float("nan")))

    def made(columns: int) -> Array:
        return queue.put(inputs.activations(rng, (rows, columns), "bfloat16", odd))

    with queue.step():
        weight = queue.put(rng.standard_normal(width).astype(np.float32))
        found = {"rms_norm": lambda: ops.rms_norm(made(width), weight, 1e-6),
                 "add_rms_norm": lambda: ops.add_rms_norm(made(width), made(width), weight, 1e-6)[1],
                 "swiglu": lambda: ops.swiglu(made(2 * width))}[producer]()
        assert isinstance(found, Staged)
        want = staged(queue, found.rows).blocks
        assert np.array_equal(queue.download(found.blocks).result(), queue.download(want).result())
