"""A queue that runs nothing: it checks and records every launch, and counts memory, on any machine."""
from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from blackwell_infer.device.arena import Arena, Block, Lease, aligned
from blackwell_infer.device.check import Signature, check_copy, check_shape, describe, out_of_memory
from blackwell_infer.device.host import HostFetch
from blackwell_infer.device.queue import Closable, Dim, Scalar
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.device.trace import Launch
from blackwell_infer.errors import DeviceError, KernelError
from blackwell_infer.kernels.kernel import Kernel, Variant
from blackwell_infer.types import Array

FIRST = 1 << 40
WORKSPACE = 64 << 20

T = TypeVar("T", bound=Closable)


class DryBlock:
    """A range of addresses that no memory stands behind."""

    def __init__(self, ptr: int, nbytes: int) -> None:
        self.ptr = ptr
        self.nbytes = nbytes


class DryPending:
    """A download of zeros."""

    def __init__(self, queue: DryQueue, src: Tensor) -> None:
        self._queue = queue
        self._src = src

    def result(self) -> np.ndarray[Any, Any]:
        """Zeros of the source's shape. DeviceError inside a step: a captured step cannot wait for the host."""
        if self._queue.inside:
            raise DeviceError(f"host read of {describe(self._src)} inside a step: take the result after the step")
        return np.zeros(self._src.shape, self._src.dtype)


class DryCaptured:
    """A recorded step: `run` adds its launches to the trace again."""

    nbytes = 0

    def __init__(self, queue: DryQueue, trace: list[Launch]) -> None:
        self._queue = queue
        self.trace = trace

    def run(self) -> None:
        with self._queue.step():
            self._queue.trace += self.trace

    def close(self) -> None:
        self.trace = []


class DryQueue:
    """`device.queue.Queue` without a device of architecture `arch`.

    Asserts the laws of a captured step, each with a DeviceError: no allocation outside the arena, no host read, no
    tensor of an earlier step, and inside `capture` no copy from or to the host. `total` bytes of pretended memory; more
    raises OutOfMemoryError as a GPU would.
    `trace` holds every launch so far; `device.trace.same_grids` compares the traces of two steps.
    """

    def __init__(self, arch: str = "sm_90a", sm_count: int = 132, libraries: frozenset[str] = frozenset(),
                 total: int = 1 << 40) -> None:
        self.arch = arch
        self.sm_count = sm_count
        self.libraries = libraries
        self.total = total
        self.trace: list[Launch] = []
        self.variants: dict[str, Variant] = {}
        """every variant launched so far by its key: what a GPU must compile before it can run the same"""
        self.inside = False
        self.capturing = False
        self.persistent = 0
        """bytes of blocks that live now, the arena's excluded"""
        self.peak = 0
        """most bytes that ever lived at once, the arena's blocks included"""
        self.arena = Arena(self._block)
        self._next = FIRST
        self._live = 0
        self._owned: dict[object, Closable] = {}
        self._signatures: dict[str, tuple[Kernel, Signature]] = {}
        self._workspace: Block | None = None

    def put(self, host: np.ndarray[Any, Any]) -> Tensor:
        self._check_copies("upload")
        return self.empty(host.shape, host.dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        if self.inside:
            raise DeviceError(f"zeros{shape} inside a step allocates outside the arena: allocate it before the step")
        return self.empty(shape, dtype)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        kind = np.dtype(dtype)
        nbytes = math.prod(map(int, shape)) * kind.itemsize
        if self.inside:
            ptr, lease = self.arena.take(nbytes)
            return Tensor(ptr, tuple(shape), kind, lease)
        block = self._block(nbytes)
        self.persistent += block.nbytes
        weakref.finalize(block, self._forget, block.nbytes)
        return Tensor(block.ptr, tuple(shape), kind, block)

    def upload(self, dst: Array, *sources: np.ndarray[Any, Any]) -> None:
        self._check_copies("upload")
        self._check_alive(check_copy(dst, sources), "upload")

    def download(self, src: Array) -> DryPending:
        if not isinstance(src, Tensor):
            raise DeviceError(f"a download needs a device array, not {describe(src)}")
        self._check_copies("download")
        self._check_alive(src, "download")
        return DryPending(self, src)

    def fetch(self, parts: Sequence[Array]) -> HostFetch:
        return HostFetch([self.download(part).result() for part in parts])

    @contextmanager
    def step(self) -> Iterator[None]:
        if self.inside:
            raise DeviceError("a step inside a step")
        self.arena.reset()
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def launch(self, v: Variant, grid: Dim, block: Dim, *args: Array | Scalar | None, smem: int = 0,
               pdl: bool = False) -> None:
        check_shape(v, self.arch, grid, block, smem)
        key = v.key
        if self.arch not in v.kernel.archs:
            raise KernelError(f"{key}: no kernel for {self.arch}; it exists for {', '.join(v.kernel.archs)}")
        kernel, signature = self._signatures.get(key, (None, None))
        if kernel is not v.kernel or signature is None:
            signature = Signature(v.kernel)
            self._signatures[key] = v.kernel, signature
        signature.pack(bytearray(signature.nbytes), args)
        for p, arg in zip(v.kernel.params, args, strict=True):
            if isinstance(arg, Tensor):
                self._check_alive(arg, key, p.name)
        self.variants[key] = v
        self.trace.append(Launch(v.kernel.entry, v.defines, grid, block, smem, pdl, tuple(map(describe, args))))

    def library(self, name: str, call: Callable[[int, int, int], None], reads: Sequence[Array],
                writes: Sequence[Array]) -> None:
        if name not in self.libraries:
            raise DeviceError(f"library {name} is not among {sorted(self.libraries)} of this queue")
        for array in (*reads, *writes):
            if not isinstance(array, Tensor):
                raise DeviceError(f"{name}: a library reads and writes device arrays, not {describe(array)}")
            self._check_alive(array, name)
        if self._workspace is None:
            self._workspace = self._block(WORKSPACE)
        nothing = (0, 0, 0)
        self.trace.append(Launch(name, (), nothing, nothing, 0, False, tuple(map(describe, (*reads, *writes)))))

    def capture(self, fn: Callable[[], None]) -> DryCaptured:
        seen = len(self.trace)
        with self.step():
            self.capturing = True
            try:
                fn()
            finally:
                self.capturing = False
                recorded, self.trace[seen:] = self.trace[seen:], []
        return DryCaptured(self, recorded)

    def _check_copies(self, what: str) -> None:
        if self.capturing:
            raise DeviceError(f"{what} inside a captured step: it would repeat what the host holds now")

    def owned(self, kind: Callable[[], T]) -> T:
        if kind not in self._owned:
            self._owned[kind] = kind()
        return self._owned[kind]  # type: ignore[return-value]

    def memory(self) -> tuple[int, int]:
        return self.total - self._live, self.total

    def close(self) -> None:
        for thing in self._owned.values():
            thing.close()
        self._owned.clear()

    def _block(self, nbytes: int) -> DryBlock:
        size = max(aligned(nbytes), aligned(1))
        if self._live + size > self.total:
            raise out_of_memory("an allocation", size, self.total - self._live, self.total)
        block = DryBlock(self._next, size)
        self._next += size
        self._live += size
        self.peak = max(self.peak, self._live)
        return block

    def _forget(self, nbytes: int) -> None:
        self.persistent -= nbytes
        self._live -= nbytes

    def _check_alive(self, t: Tensor, *where: str) -> None:
        base = t.base
        if isinstance(base, Lease):
            if base.step != self.arena.step:
                raise DeviceError(f"{': '.join(where)}: {describe(t)} belongs to step {base.step}, but step "
                                  f"{self.arena.step} has reused its memory: keep it in a block of its own")
            base = base.block
        if not isinstance(base, DryBlock):
            raise DeviceError(f"{': '.join(where)}: {describe(t)} is not memory of this queue")
        if not base.ptr <= t.ptr <= t.ptr + t.nbytes <= base.ptr + base.nbytes:
            raise DeviceError(f"{': '.join(where)}: {describe(t)} reaches beyond its block of {base.nbytes} bytes")
