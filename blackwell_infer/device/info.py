"""What GPUs this machine has, without failing or hanging where it has none."""
from __future__ import annotations

from typing import Any

import msgspec

from blackwell_infer.kernels.kernel import ARCHS

OLDEST_DRIVER = (13, 0)
"""Kernels are machine code of CUDA 13 compilers, which drivers from 580 on load."""


class DeviceInfo(msgspec.Struct, frozen=True):
    """One GPU. `arch` is the compilation target; `free_bytes` is None where the driver would not say."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    arch: str
    sm_count: int
    total_bytes: int
    free_bytes: int | None

    @property
    def supported(self) -> bool:
        """Whether kernels exist for this GPU."""
        return self.arch in ARCHS


class Devices(msgspec.Struct, frozen=True):
    """All GPUs. If there are none, `reason` says why. `driver` is its CUDA version, (0, 0) without one."""

    devices: tuple[DeviceInfo, ...]
    driver: tuple[int, int]
    reason: str


def arch_of(major: int, minor: int) -> str:
    """The target of a compute capability: family targets where they exist (one binary serves 12.0 and 12.1)."""
    if major in (10, 12):
        return f"sm_{major}0f"
    return "sm_90a" if (major, minor) == (9, 0) else f"sm_{major}{minor}"


def list_devices() -> Devices:
    """Every GPU that the driver shows. Never raises; makes each GPU's context for a moment to ask for free memory."""
    try:
        from cuda.bindings import driver as api
        from cuda.pathfinder import DynamicLibNotFoundError
    except Exception as error:
        return Devices((), (0, 0), f"the CUDA bindings cannot be loaded: {error}")
    try:
        started = api.cuInit(0)
        if started[0] == api.CUresult.CUDA_ERROR_NO_DEVICE:
            return Devices((), (0, 0), "the NVIDIA driver shows no GPU (is CUDA_VISIBLE_DEVICES empty?)")
        value(started, api)
        version = value(api.cuDriverGetVersion(), api)
        driver = (version // 1000, version % 1000 // 10)
        found = tuple(read_device(i, api) for i in range(value(api.cuDeviceGetCount(), api)))
        return Devices(found, driver, "" if found else "the NVIDIA driver shows no GPU")
    except DynamicLibNotFoundError:
        return Devices((), (0, 0), "no NVIDIA driver is installed (libcuda was not found)")
    except Exception as error:
        return Devices((), (0, 0), f"no usable NVIDIA driver: {error}")


def read_device(index: int, api: Any) -> DeviceInfo:
    """Ask the driver about one GPU; RuntimeError if it refuses."""
    names = api.CUdevice_attribute
    device = value(api.cuDeviceGet(index), api)
    major, minor, sms = (int(value(api.cuDeviceGetAttribute(name, device), api)) for name in (
        names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        names.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT))
    name = value(api.cuDeviceGetName(128, device), api).split(b"\0")[0].decode(errors="replace")
    total = int(value(api.cuDeviceTotalMem(device), api))
    return DeviceInfo(index, name, (major, minor), arch_of(major, minor), sms, total, free_bytes(device, api))


def free_bytes(device: Any, api: Any) -> int | None:
    """Free memory of a GPU, None if its context cannot be made (exclusive use by another process)."""
    error, context = api.cuDevicePrimaryCtxRetain(device)
    if error != api.CUresult.CUDA_SUCCESS:
        return None
    try:
        value(api.cuCtxPushCurrent(context), api)
        try:
            return int(value(api.cuMemGetInfo(), api)[0])
        finally:
            api.cuCtxPopCurrent()
    finally:
        api.cuDevicePrimaryCtxRelease(device)


def value(result: tuple[Any, ...], api: Any) -> Any:
    """The value or values of a driver call; RuntimeError with the driver's name of the error."""
    error, *values = result
    if error != api.CUresult.CUDA_SUCCESS:
        raise RuntimeError(error.name)
    return values[0] if len(values) == 1 else values
