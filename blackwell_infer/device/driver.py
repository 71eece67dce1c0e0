"""Memory and modules of one CUDA device, over the driver bindings: what cuda-core does not give in the needed form.

Allocations are plain (not from a pool), so that a refusal is exact and freed memory is really free.
"""
from __future__ import annotations

import ctypes
import threading
import weakref
from typing import Any

import numpy as np

from blackwell_infer.device.check import out_of_memory
from blackwell_infer.device.host import HostMemory
from blackwell_infer.errors import DeviceError


class DeviceBlock:
    """Device memory of its own, freed with the object."""

    def __init__(self, ptr: int, nbytes: int) -> None:
        self.ptr = ptr
        self.nbytes = nbytes


class PinnedBlock:
    """Page-locked host memory, freed with the object; `view` is its bytes."""

    def __init__(self, ptr: int, nbytes: int) -> None:
        self.ptr = ptr
        self.nbytes = nbytes
        self.view = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(ptr))


class Driver:
    """Calls on device number `index`. Any thread may call: each is bound to the device's context on first use."""

    def __init__(self, index: int) -> None:
        from cuda.bindings import driver
        from cuda.core import Device

        self.api = driver
        self.device = Device(index)
        self._bound = threading.local()
        self.bind()
        self.version = int(self.call(driver.cuDriverGetVersion(), "asking for the driver's version"))
        """of CUDA that the driver speaks: 13010 is 13.1"""

    def bind(self) -> None:
        """Make the device's primary context current in the calling thread."""
        try:
            self._bound.yes  # noqa: B018  (an attribute that exists is all that is asked, on the launch path)
        except AttributeError:
            self.device.set_current()
            self._bound.yes = True

    def call(self, result: tuple[Any, ...], what: str) -> Any:
        """The value or values of a driver call; DeviceError if it failed."""
        if result[0] != self.api.CUresult.CUDA_SUCCESS:
            raise self.failure(result[0], what)
        return result[1] if len(result) == 2 else result[1:]

    def failure(self, error: Any, what: str) -> DeviceError:
        """The typed error of a failed driver call."""
        _, text = self.api.cuGetErrorString(error)
        reason = text.decode() if text else "unknown error"
        return DeviceError(f"{what} failed on GPU {self.device.device_id} ({self.device.name}): {error.name}: {reason}")

    def wait(self, work: Any) -> None:
        """Wait for an event or a stream. DeviceError if a kernel before it failed; the device is then unusable."""
        self.bind()
        try:
            work.sync()
        except Exception as error:
            raise DeviceError(f"work on GPU {self.device.device_id} ({self.device.name}) failed: {error}; "
                              "run under compute-sanitizer to find the kernel") from error

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        self.bind()
        free, total = self.call(self.api.cuMemGetInfo(), "asking for free memory")
        return int(free), int(total)

    def bandwidth(self) -> int:
        """Bytes per second of the memory by its clock and width, two transfers a cycle; 0 where the driver does not
        say. What `engine.profile.measure_bandwidth` reads is somewhat less."""
        names = self.api.CUdevice_attribute
        device = self.call(self.api.cuDeviceGet(self.device.device_id), "asking for the device")
        khz, bits = (int(self.call(self.api.cuDeviceGetAttribute(name, device), "asking for the memory's speed"))
                     for name in (names.CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE,
                                  names.CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH))
        return 2 * khz * 1000 * bits // 8

    def allocate(self, nbytes: int) -> DeviceBlock:
        """Device memory, a multiple of 16 bytes. OutOfMemoryError gives bytes needed, free and total.

        Asynchronous copies of 16 bytes with a shorter source count as accesses of 16 bytes to memory checkers.
        """
        self.bind()
        size = max(-(-nbytes // 16), 1) * 16
        error, ptr = self.api.cuMemAlloc(size)
        if error == self.api.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise out_of_memory("an allocation on the GPU", size, *self.memory())
        self.call((error,), "allocating device memory")
        block = DeviceBlock(int(ptr), size)
        weakref.finalize(block, self._free, block.ptr).atexit = False
        return block

    def allocate_pinned(self, nbytes: int) -> PinnedBlock:
        """Page-locked host memory. OutOfMemoryError if the host refuses."""
        self.bind()
        error, ptr = self.api.cuMemAllocHost(nbytes)
        if error == self.api.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise out_of_memory("page-locked host memory", nbytes, *HostMemory().memory())
        self.call((error,), "allocating page-locked memory")
        block = PinnedBlock(int(ptr), nbytes)
        weakref.finalize(block, self._free_pinned, block.ptr).atexit = False
        return block

    def function(self, cubin: bytes, entry: str) -> tuple[Any, Any]:
        """(CUfunction, what keeps it loaded) of an entry of machine code."""
        from cuda.core import ObjectCode

        self.bind()
        kernel = ObjectCode.from_cubin(cubin, name=entry).get_kernel(entry)
        return self.call(self.api.cuKernelGetFunction(kernel.handle), f"loading kernel {entry}"), kernel

    def allow_shared(self, function: Any, nbytes: int, what: str) -> None:
        """Let launches of `function` ask for `nbytes` of dynamic shared memory (48 KiB are always allowed)."""
        attribute = self.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.call(self.api.cuFuncSetAttribute(function, attribute, nbytes), f"{what}: asking for {nbytes} bytes shared")

    def _free(self, ptr: int) -> None:
        self.bind()
        self.api.cuMemFree(ptr)

    def _free_pinned(self, ptr: int) -> None:
        self.bind()
        self.api.cuMemFreeHost(ptr)
