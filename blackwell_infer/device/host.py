"""Memory of the NumPy backend: host arrays are the arrays, and a step needs no arena."""
from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from blackwell_infer.device.check import describe, described, out_of_memory
from blackwell_infer.errors import DeviceError
from blackwell_infer.types import Array


class HostPending:
    """A copy that has already been made."""

    def __init__(self, value: np.ndarray[Any, Any]) -> None:
        self._value = value

    def result(self) -> np.ndarray[Any, Any]:
        return self._value


class HostFetch:
    """Copies that have already been made."""

    ready = True

    def __init__(self, values: list[np.ndarray[Any, Any]]) -> None:
        self._values = values

    def result(self) -> list[np.ndarray[Any, Any]]:
        return self._values


class HostMemory:
    """`device.queue.Memory` on the host. `put` keeps the array itself (a mapped file stays mapped)."""

    def put(self, host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return host

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        needed = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        free, total = self.memory()
        if needed > free:
            raise out_of_memory(f"a host array {shape}", needed, free, total)
        return np.zeros(shape, dtype)

    def download(self, src: Array) -> HostPending:
        if not isinstance(src, np.ndarray):
            raise DeviceError(f"a download needs a host array here, not {describe(src)}")
        return HostPending(src.copy())

    def fetch(self, parts: Sequence[Array]) -> HostFetch:
        return HostFetch([self.download(part).result() for part in parts])

    def upload(self, dst: Array, *sources: np.ndarray[Any, Any]) -> None:
        shape = (sum(len(src) for src in sources), *sources[0].shape[1:]) if len(sources) > 1 else sources[0].shape
        if not isinstance(dst, np.ndarray) or dst.shape != shape or any(dst.dtype != src.dtype for src in sources):
            raise DeviceError(f"an upload of {described(sources)} needs a host array like it, not {describe(dst)}")
        dst[...] = sources[0] if len(sources) == 1 else np.concatenate(sources)

    def step(self) -> AbstractContextManager[None]:
        return nullcontext()

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the machine; free counts what the kernel can reclaim (MemAvailable) where known."""
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
        try:
            with open("/proc/meminfo", encoding="ascii") as file:
                fields = dict(line.split(":", 1) for line in file)
            return int(fields["MemAvailable"].split()[0]) * 1024, total
        except (OSError, KeyError, ValueError, IndexError):
            return page * os.sysconf("SC_AVPHYS_PAGES"), total

    def close(self) -> None:
        """Nothing to release."""
