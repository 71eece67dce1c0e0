"""Queues of the emulated device, with compiled kernels kept between runs."""
from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.kernels.compile import Builder

gc.set_threshold(50_000, 20, 20)
"""parsed kernels are hundreds of thousands of objects that stay: looking through them often costs a tenth"""


@pytest.fixture(scope="session")
def emulated(pytestconfig: pytest.Config) -> Callable[..., EmulatedQueue]:
    """emulated(arch, seed=None) -> a fresh queue; the compiled units are shared."""
    folder = pytestconfig.cache.mkdir("kernels")
    builders: dict[str, Builder] = {}

    def make(arch: str, seed: int | None = None) -> EmulatedQueue:
        builder = builders.setdefault(arch, Builder(arch, cache=folder, machine_code=False))
        return EmulatedQueue(arch, builder, seed=seed)
    return make
