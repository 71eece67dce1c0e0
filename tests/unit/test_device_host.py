"""Memory of the NumPy backend, device names and architectures; what a machine without a driver says."""
from __future__ import annotations

import numpy as np
import pytest

from blackwell_infer.device.dry import DryQueue
from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.device.host import HostMemory
from blackwell_infer.device.info import DeviceInfo, Devices, arch_of, list_devices
from blackwell_infer.device.open import choose
from blackwell_infer.errors import DeviceError, OutOfMemoryError
from blackwell_infer.kernels.compile import Builder


def test_host_arrays_are_the_arrays() -> None:
    memory = HostMemory()
    x = np.arange(6)
    assert memory.put(x) is x
    pending = memory.download(x)
    x[0] = 9
    assert pending.result().tolist() == [0, 1, 2, 3, 4, 5]
    with memory.step():
        assert memory.zeros((2, 3), np.float32).sum() == 0
    free, total = memory.memory()
    assert 0 < free <= total
    with pytest.raises(OutOfMemoryError, match="a host array"):
        memory.zeros((total,), np.float64)
    with pytest.raises(DeviceError, match="needs a host array"):
        memory.download(DryQueue().empty((2,), np.float32))


def test_fetched_arrays_are_copies_of_the_moment() -> None:
    for memory in (HostMemory(), EmulatedQueue("sm_90a", Builder("sm_90a", None, machine_code=False))):
        x, y = memory.put(np.arange(6, dtype=np.int32)), memory.put(np.ones((2, 3), np.float32))
        fetch = memory.fetch([x, y[1]])
        memory.upload(x, np.zeros(6, np.int32))
        assert fetch.ready
        a, b = fetch.result()
        assert a.tolist() == [0, 1, 2, 3, 4, 5] and b.tolist() == [1, 1, 1]


def test_architectures_of_compute_capabilities() -> None:
    pairs = {(8, 0): "sm_80", (8, 9): "sm_89", (9, 0): "sm_90a", (10, 0): "sm_100f", (10, 3): "sm_100f",
             (12, 0): "sm_120f", (12, 1): "sm_120f", (11, 0): "sm_110"}
    assert {cc: arch_of(*cc) for cc in pairs} == pairs


def test_a_name_picks_the_first_usable_gpu() -> None:
    def gpu(index: int, arch: str) -> DeviceInfo:
        return DeviceInfo(index, "GPU", (0, 0), arch, 1, 1, None)

    found = Devices((gpu(0, "sm_80"), gpu(1, "sm_120f")), (13, 0), "")
    assert choose("cuda", found).index == 1 and choose("cuda:1", found).index == 1
    with pytest.raises(DeviceError, match="cuda:0 GPU is sm_80; kernels exist for"):
        choose("cuda:0", found)
    with pytest.raises(DeviceError, match="no driver here; use device numpy"):
        choose("cuda", Devices((), (0, 0), "no driver here"))


def test_listing_devices_never_raises() -> None:
    found = list_devices()
    assert bool(found.devices) != bool(found.reason)
