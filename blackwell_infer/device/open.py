"""Opens a device by the name that a user gives it."""
from __future__ import annotations

import os
from pathlib import Path

from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.device.info import OLDEST_DRIVER, DeviceInfo, Devices, list_devices
from blackwell_infer.errors import DeviceError
from blackwell_infer.kernels.compile import Builder, default_cache
from blackwell_infer.kernels.kernel import ARCHS


def choose(device: str, found: Devices) -> DeviceInfo:
    """The GPU that "cuda" (the first usable) or "cuda:N" means. DeviceError says why there is none, and what to do."""
    if not found.devices:
        raise DeviceError(f"device {device}: {found.reason}; use device numpy, or install NVIDIA driver 580 or newer")
    if found.driver < OLDEST_DRIVER:
        have, need = (".".join(map(str, v)) for v in (found.driver, OLDEST_DRIVER))
        raise DeviceError(f"device {device}: the driver speaks CUDA {have}, {need} is needed: "
                          "install NVIDIA driver 580 or newer")
    name, colon, number = device.partition(":")
    if name != "cuda" or (colon and not number.isdecimal()):
        raise DeviceError(f"device {device!r} is not a GPU: write cuda or cuda:N")
    listing = "; ".join(f"cuda:{d.index} {d.name} ({d.arch})" for d in found.devices)
    if number:
        wanted = [d for d in found.devices if d.index == int(number)]
        if not wanted:
            raise DeviceError(f"device {device} does not exist; found {listing}")
    else:
        wanted = [d for d in found.devices if d.supported] or list(found.devices)
    if not wanted[0].supported:
        raise DeviceError(f"device cuda:{wanted[0].index} {wanted[0].name} is {wanted[0].arch}; kernels exist for "
                          f"{', '.join(ARCHS)}; use device numpy")
    return wanted[0]


def open_emulated(device: str, cache: Path | None = None) -> EmulatedQueue:
    """A queue on the PTX interpreter: "emulated" (sm_90a) or "emulated:ARCH". DeviceError names the archs there are."""
    arch = device.partition(":")[2] or "sm_90a"
    if arch not in ARCHS:
        raise DeviceError(f"device {device}: kernels exist for {', '.join(ARCHS)}")
    return EmulatedQueue(arch, Builder(arch, cache or default_cache(os.environ), machine_code=False))


def open_queue(device: str = "cuda", cache: Path | None = None, libraries: bool = True) -> CudaQueue | EmulatedQueue:
    """A queue on the GPU named "cuda" or "cuda:N", or on the interpreter (see `open_emulated`). `cache` is a folder for
    compiled kernels (default: the user's). Without `libraries` only the project's own kernels run."""
    if device.partition(":")[0] == "emulated":
        return open_emulated(device, cache)
    info = choose(device, list_devices())
    return CudaQueue(info.index, info.arch, Builder(info.arch, cache or default_cache(os.environ)), libraries=libraries)
