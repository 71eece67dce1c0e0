"""The kernel that measures bandwidth reads every word once: its sums are those of NumPy."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.ops.cuda.stream import TILE, read


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120f"])
def test_every_tile_leaves_the_exclusive_or_of_its_words(emulated: Callable[..., EmulatedQueue], arch: str) -> None:
    queue = emulated(arch)
    words = np.random.default_rng(0).integers(0, 1 << 32, 3 * TILE, np.uint32)
    out = queue.zeros((3,), np.uint32)
    read(queue, queue.put(words), out)
    assert np.array_equal(queue.download(out).result(), np.bitwise_xor.reduce(words.reshape(3, TILE), axis=1))
