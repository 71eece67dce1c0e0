"""A queue without a GPU: launches run in the PTX interpreter, on the text that the compiler makes for a real device."""
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np

from blackwell_infer.device.arena import Arena, Lease
from blackwell_infer.device.check import Signature, check_copy, check_shape, describe
from blackwell_infer.device.host import HostFetch
from blackwell_infer.device.queue import Closable, Dim, Scalar
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.emulator.memory import GUARD, Heap
from blackwell_infer.emulator.parse import Module
from blackwell_infer.emulator.run import Emulator, module_of
from blackwell_infer.emulator.tensormap import TensorMap
from blackwell_infer.errors import DeviceError
from blackwell_infer.kernels.compile import Builder
from blackwell_infer.kernels.kernel import Variant
from blackwell_infer.log import Progress, silent
from blackwell_infer.types import Array

TOTAL = 1 << 28
"""bytes that the emulated device pretends to have: it is for tiny models"""

T = TypeVar("T", bound=Closable)


class EmulatedBlock:
    """An allocation of the heap; further access is an error once the object dies."""

    def __init__(self, heap: Heap, nbytes: int) -> None:
        self.ptr, self.nbytes = heap.allocate(nbytes), nbytes
        weakref.finalize(self, heap.free, self.ptr)


class EmulatedRange:
    """Room of the arena: each array that a step takes there is an allocation of its own, with a gap behind it."""

    def __init__(self, heap: Heap, nbytes: int) -> None:
        self.ptr, self.nbytes = heap.reserve(nbytes), nbytes


class Copied:
    """A download: the emulator runs in order, so the bytes are there."""

    def __init__(self, host: np.ndarray[Any, Any]) -> None:
        self._host = host

    def result(self) -> np.ndarray[Any, Any]:
        return self._host


class EmulatedCaptured:
    """A recorded step: its allocations and launches in order, run again with the arguments that they had."""

    nbytes = 0

    def __init__(self, queue: EmulatedQueue, moves: list[Callable[[], None]]) -> None:
        self._queue = queue
        self._moves = moves

    def run(self) -> None:
        with self._queue.step():
            for move in self._moves:
                move()

    def close(self) -> None:
        self._moves = []


class EmulatedQueue:
    """`device.queue.Queue` of architecture `arch` through `emulator`. `seed` turns on the random-warp schedule.

    PtxError (an unknown form, an access out of bounds, a missing barrier) carries the PTX line and instruction.
    """

    libraries: frozenset[str] = frozenset()

    def __init__(self, arch: str = "sm_90a", builder: Builder | None = None, seed: int | None = None,
                 sm_count: int = 4) -> None:
        self.arch, self.sm_count, self.seed = arch, sm_count, seed
        self.builder = builder or Builder(arch, machine_code=False)
        self.heap = Heap()
        self.arena = Arena(self._range)
        self._ranges: list[EmulatedRange] = []
        self._emulator = Emulator(self.heap)
        self.inside = False
        self._moves: list[Callable[[], None]] | None = None
        self._globals: dict[str, dict[str, int]] = {}
        self._owned: dict[object, Closable] = {}

    def put(self, host: np.ndarray[Any, Any]) -> Tensor:
        out = self.empty(host.shape, host.dtype)
        self.upload(out, host)
        return out

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        out = self._own(shape, np.dtype(dtype))
        self.heap.view(out.ptr, out.nbytes)[:] = 0
        return out

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        kind = np.dtype(dtype)
        if not self.inside:
            return self._own(shape, kind)
        nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        ptr, lease = self.arena.take(nbytes + GUARD)
        self._do(partial(self._define, ptr, nbytes))
        return Tensor(ptr, tuple(shape), kind, lease)

    def _define(self, ptr: int, nbytes: int) -> None:
        """An allocation in place of those that died there earlier in the step."""
        self.heap.forget(ptr, nbytes + GUARD)
        self.heap.define(ptr, nbytes)

    def _do(self, move: Callable[[], None]) -> None:
        """Make a move, or only record it inside a capture."""
        if self._moves is None:
            move()
        else:
            self._moves.append(move)

    def _range(self, nbytes: int) -> EmulatedRange:
        self._ranges.append(EmulatedRange(self.heap, nbytes))
        return self._ranges[-1]

    def _own(self, shape: tuple[int, ...], kind: np.dtype[Any]) -> Tensor:
        block = EmulatedBlock(self.heap, int(np.prod(shape, dtype=np.int64)) * kind.itemsize)
        return Tensor(block.ptr, tuple(shape), kind, block)

    def upload(self, dst: Array, *sources: np.ndarray[Any, Any]) -> None:
        to, at = check_copy(dst, sources), 0
        self._check_copies("upload")
        for src in sources:
            if src.nbytes:
                self.heap.view(to.ptr + at, src.nbytes)[:] = np.ascontiguousarray(src).reshape(-1).view(np.uint8)
            at += src.nbytes

    def download(self, src: Array) -> Copied:
        if not isinstance(src, Tensor):
            raise DeviceError(f"a download needs a device array, not {describe(src)}")
        self._check_copies("download")
        if not src.nbytes:
            return Copied(np.empty(src.shape, src.dtype))
        return Copied(self.heap.peek(src.ptr, src.nbytes).copy().view(src.dtype).reshape(src.shape))

    def fetch(self, parts: Sequence[Array]) -> HostFetch:
        return HostFetch([self.download(part).result() for part in parts])

    @contextmanager
    def step(self) -> Iterator[None]:
        if self.inside:
            raise DeviceError("a step inside a step")
        self.arena.reset()
        for taken in self._ranges:
            self.heap.forget(taken.ptr, taken.nbytes)
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def launch(self, v: Variant, grid: Dim, block: Dim, *args: Array | Scalar | None, smem: int = 0,
               pdl: bool = False) -> None:
        check_shape(v, self.arch, grid, block, smem)
        signature = Signature(v.kernel)
        slots = bytearray(signature.nbytes)
        signature.pack(slots, args)
        for arg in args:
            if isinstance(arg, Tensor) and isinstance(arg.base, Lease) and arg.base.step != self.arena.step:
                raise DeviceError(f"{v.key}: {describe(arg)} belongs to an earlier step, whose memory is used again")
        module, addresses = self._module(v)
        params = bytearray()
        for i, (_, size) in enumerate(module.entries[v.kernel.entry].params):
            params += b"\0" * (-len(params) % size) + slots[8 * i : 8 * i + size]
        self._do(partial(self._emulator.launch, module, v.kernel.entry, addresses, grid, block, bytes(params), smem,
                         self.seed))

    def _module(self, v: Variant) -> tuple[Module, dict[str, int]]:
        text = self.builder.unit(v).ptx
        module = module_of(text)
        if text not in self._globals:
            addresses = self._globals[text] = {}
            for variable in module.variables:
                if variable.space in ("const", "global"):
                    at = self.heap.allocate(variable.size)
                    data = variable.data.ljust(variable.size, b"\0")
                    self.heap.view(at, variable.size)[:] = np.frombuffer(data, np.uint8)
                    addresses[variable.name] = at
        return module, self._globals[text]

    def tensor_map(self, x: Tensor, box: tuple[int, ...], swizzle: int = 0) -> Tensor:
        """A TMA descriptor (uint8 [128]) of a contiguous array, for kernels that take its address. `box` is the tile in
        elements, dimensions as in x.shape; `swizzle` 0, 32, 64 or 128 bytes. PtxError names what hardware refuses."""
        strides = tuple(int(np.prod(x.shape[i:], dtype=np.int64)) * x.dtype.itemsize for i in range(1, len(x.shape)))
        return self.put(TensorMap(x.ptr, x.dtype.itemsize, x.shape[::-1], strides[::-1], box[::-1], swizzle).encode())

    def library(self, name: str, call: Callable[[int, int, int], None], reads: Sequence[Array],
                writes: Sequence[Array]) -> None:
        raise DeviceError(f"the emulated device has no library {name}")

    def reserve(self, nbytes: int) -> None:
        """Take the memory of steps now. OutOfMemoryError gives bytes needed and free."""
        self.arena.reserve(nbytes)

    def capture(self, fn: Callable[[], None]) -> EmulatedCaptured:
        moves: list[Callable[[], None]] = []
        with self.step():
            self._moves = moves
            try:
                fn()
            finally:
                self._moves = None
        return EmulatedCaptured(self, moves)

    def _check_copies(self, what: str) -> None:
        if self._moves is not None:
            raise DeviceError(f"{what} inside a captured step: it would repeat what the host holds now")

    def owned(self, kind: Callable[[], T]) -> T:
        if kind not in self._owned:
            self._owned[kind] = kind()
        return self._owned[kind]  # type: ignore[return-value]

    def prepare(self, variants: Iterable[Variant], progress: Progress = silent) -> None:
        """Compile variants ahead of their first launch. KernelError names one that does not compile."""
        self.builder.build_many(variants, progress)

    def bandwidth(self) -> int:
        """Bytes per second of the memory: not known."""
        return 0

    def sync(self) -> None:
        """Launches run at once: nothing is under way."""

    def memory(self) -> tuple[int, int]:
        return max(0, TOTAL - self.heap.top), TOTAL

    def close(self) -> None:
        for thing in self._owned.values():
            thing.close()
        self._owned.clear()
