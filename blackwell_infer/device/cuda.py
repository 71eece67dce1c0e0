"""The queue of an NVIDIA GPU: one stream, plain allocations, an arena for steps, kernels compiled on first use."""
from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from blackwell_infer.device.arena import Arena
from blackwell_infer.device.check import Signature, check_copy, check_shape, describe
from blackwell_infer.device.driver import DeviceBlock, Driver
from blackwell_infer.device.graph import Graph
from blackwell_infer.device.queue import Closable, Dim, Pending, Scalar
from blackwell_infer.device.staging import (
    LARGE_SLOT,
    SMALL_SLOT,
    CudaFetch,
    Downloader,
    Fetcher,
    Uploader,
    contiguous_parts,
)
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.errors import DeviceError
from blackwell_infer.kernels.compile import Builder
from blackwell_infer.kernels.kernel import Variant
from blackwell_infer.log import Progress, silent
from blackwell_infer.types import Array

T = TypeVar("T", bound=Closable)

WORKSPACE = {"sm_90a": 32 << 20}
"""Bytes that a vendor library may scratch in: what cuBLAS recommends for Hopper; 64 MiB elsewhere."""
KEPT_SHAPES = 4096
DEFAULT_SHARED = 48 << 10


class Loaded:
    """A variant on the device: its function, its argument buffer and the launch configurations used so far."""

    def __init__(self, v: Variant, function: Any, owner: Any, static_shared: int) -> None:
        self.function = function
        self.signature = Signature(v.kernel)
        self.buffer = bytearray(max(self.signature.nbytes, 8))
        self.configs: dict[tuple[Dim, Dim, int, bool], Any] = {}
        self.shared = DEFAULT_SHARED - static_shared
        start = ctypes.addressof((ctypes.c_char * len(self.buffer)).from_buffer(self.buffer))
        self._slots = np.arange(start, start + len(self.buffer), 8, dtype=np.uint64)
        self.arguments = self._slots.ctypes.data
        self._owner = owner


class CudaCaptured:
    """A step recorded by `CudaQueue.capture`."""

    def __init__(self, queue: CudaQueue, graph: Graph) -> None:
        self._queue = queue
        self._graph = graph
        self.nbytes = graph.nbytes

    def run(self) -> None:
        with self._queue.step():
            self._graph.launch()

    def close(self) -> None:
        self._graph.close()


class CudaQueue:
    """`device.queue.Queue` on GPU number `index`. Calls may come from any thread, one at a time.

    Launches, copies and library calls run in call order. `close` frees nothing that a Tensor still holds: memory goes
    with its last Tensor. Given a green context (see `device.green`), the queue owns it, and its work runs only there.
    """

    def __init__(self, index: int, arch: str, builder: Builder, green: Any = None, libraries: bool = True) -> None:
        from cuda.core import EventOptions, StreamOptions

        self.driver = Driver(index)
        self.arch = arch
        place = self.driver.device if green is None else green
        self.sm_count = int(place.properties.multiprocessor_count if green is None else place.resources.sm.sm_count)
        self.builder = builder
        self.libraries: frozenset[str] = frozenset({"cublaslt"}) if libraries and cublaslt_exists() else frozenset()
        self.stream = place.create_stream(options=StreamOptions(nonblocking=True))
        self.arena = Arena(self.driver.allocate)
        self._timing = EventOptions(timing_enabled=True)
        self._inside = False
        self._capturing = False
        self._graphs: list[CudaCaptured] = []
        self._small = Uploader(self.driver, self.stream, SMALL_SLOT)
        self._large = Uploader(self.driver, self.stream, LARGE_SLOT)
        self._downloader = Downloader(self.driver, self.stream)
        self._fetcher = Fetcher(self.driver, self.stream, place.create_stream(options=StreamOptions(nonblocking=True)))
        self._loaded: dict[tuple[str, str, Any], Loaded] = {}
        self._workspace: DeviceBlock | None = None
        self._owned: dict[object, Closable] = {}
        self._green = green
        self._open = True

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        kind = np.dtype(dtype)
        nbytes = kind.itemsize
        for n in shape:
            nbytes *= n
        if self._inside:
            ptr, base = self.arena.take(nbytes)
            return Tensor(ptr, tuple(shape), kind, base)
        block = self.driver.allocate(nbytes)
        return Tensor(block.ptr, tuple(shape), kind, block)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        if self._inside:
            raise DeviceError(f"zeros{shape} inside a step allocates outside the arena: allocate it before the step")
        t = self.empty(shape, dtype)
        if t.nbytes:
            call = self.driver.api.cuMemsetD8Async(t.ptr, 0, t.nbytes, self.stream.handle)
            self.driver.call(call, f"clearing {describe(t)}")
        return t

    def put(self, host: np.ndarray[Any, Any]) -> Tensor:
        t = self.empty(host.shape, host.dtype)
        self.upload(t, host)
        return t

    def upload(self, dst: Array, *sources: np.ndarray[Any, Any]) -> None:
        to = check_copy(dst, sources)
        self._check_copies("upload to", dst)
        self.driver.bind()
        uploader = self._small if to.nbytes <= SMALL_SLOT else self._large
        uploader.copy(to.ptr, (part for src in sources for part in contiguous_parts(src)))

    def download(self, src: Array) -> Pending:
        if not isinstance(src, Tensor):
            raise DeviceError(f"a download needs a device array, not {describe(src)}")
        self._check_copies("download of", src)
        self.driver.bind()
        return self._downloader.start(src)

    def fetch(self, parts: Sequence[Array]) -> CudaFetch:
        tensors = []
        for part in parts:
            if not isinstance(part, Tensor):
                raise DeviceError(f"a fetch needs device arrays, not {describe(part)}")
            self._check_copies("fetch of", part)
            tensors.append(part)
        self.driver.bind()
        return self._fetcher.start(tensors)

    @contextmanager
    def step(self) -> Iterator[None]:
        if self._inside:
            raise DeviceError("a step inside a step")
        self.arena.reset()
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def launch(self, v: Variant, grid: Dim, block: Dim, *args: Array | Scalar | None, smem: int = 0,
               pdl: bool = False) -> None:
        key = (v.kernel.source, v.kernel.entry, v.defines)
        loaded = self._loaded.get(key)
        if loaded is None:
            loaded = self._loaded[key] = self._load(v)
        shape = (grid, block, smem, pdl)
        config = loaded.configs.get(shape)
        if config is None:
            config = self._configure(v, loaded, grid, block, smem, pdl)
        loaded.signature.pack(loaded.buffer, args)
        self.driver.bind()
        api = self.driver.api
        (error,) = api.cuLaunchKernelEx(config, loaded.function, loaded.arguments, 0)
        if error != api.CUresult.CUDA_SUCCESS:
            raise self.driver.failure(error, f"launch of {v.key} with grid {grid}, block {block}, {smem} bytes shared")

    def library(self, name: str, call: Callable[[int, int, int], None], reads: Sequence[Array],
                writes: Sequence[Array]) -> None:
        if name not in self.libraries:
            raise DeviceError(f"library {name} is not installed (found: {sorted(self.libraries)}): "
                              "pip install 'blackwell-infer[cu13]'")
        workspace = self._library_memory()
        self.driver.bind()
        call(int(self.stream.handle), workspace.ptr, workspace.nbytes)

    def _library_memory(self) -> DeviceBlock:
        if self._workspace is None:
            self._workspace = self.driver.allocate(WORKSPACE.get(self.arch, 64 << 20))
        return self._workspace

    def reserve(self, nbytes: int) -> None:
        """Take the memory of steps now, and that of libraries, so that no step finds the GPU full. OutOfMemoryError
        gives bytes needed and free."""
        self.arena.reserve(nbytes)
        if self.libraries:
            self._library_memory()

    def capture(self, fn: Callable[[], None]) -> CudaCaptured:
        with self.step():
            self._capturing = True
            try:
                graph = Graph(self.driver, self.stream, fn)
            finally:
                self._capturing = False
        self._graphs.append(CudaCaptured(self, graph))
        return self._graphs[-1]

    def _check_copies(self, what: str, array: Array) -> None:
        if self._capturing:
            raise DeviceError(f"{what} {describe(array)} inside a captured step: it would repeat what the host holds "
                              "now")

    def owned(self, kind: Callable[[], T]) -> T:
        if kind not in self._owned:
            self.driver.bind()
            self._owned[kind] = kind()
        return self._owned[kind]  # type: ignore[return-value]

    def memory(self) -> tuple[int, int]:
        return self.driver.memory()

    def bandwidth(self) -> int:
        """Bytes per second of the memory, see `Driver.bandwidth`."""
        return self.driver.bandwidth()

    def prepare(self, variants: Iterable[Variant], progress: Progress = silent) -> None:
        """Compile and load variants ahead of their first launch. KernelError names one that does not compile."""
        wanted = list(variants)
        self.builder.build_many(wanted, progress)
        for v in wanted:
            key = (v.kernel.source, v.kernel.entry, v.defines)
            if key not in self._loaded:
                self._loaded[key] = self._load(v)

    def sync(self) -> None:
        """Wait until everything queued so far is done. DeviceError if any of it failed."""
        self.driver.wait(self.stream)

    def follow(self, other: CudaQueue) -> None:
        """What is queued here from now on runs after everything that `other`, on the same GPU, has queued so far."""
        self.driver.bind()
        self.stream.wait(other.stream)

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        """Milliseconds that the device spent on what `work` queues; waits for it."""
        self.driver.bind()
        start = self.stream.record(options=self._timing)
        work()
        end = self.stream.record(options=self._timing)
        self.driver.wait(end)
        return float(end - start)

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self.sync()
        for graph in self._graphs:
            graph.close()
        self._graphs.clear()
        for thing in self._owned.values():
            thing.close()
        self._owned.clear()
        self._small.close()
        self._large.close()
        self._downloader.close()
        self._fetcher.close()
        self._loaded.clear()
        self._workspace = None
        self.arena = Arena(self.driver.allocate)
        self.stream.close()
        if self._green is not None:
            self._green.close()
        self.stream = self._green = None  # a stream object keeps its context, and so the SMs, for as long as it lives

    def _load(self, v: Variant) -> Loaded:
        binary = self.builder.build(v)
        function, owner = self.driver.function(binary.cubin, v.kernel.entry)
        return Loaded(v, function, owner, binary.shared_bytes)

    def _configure(self, v: Variant, loaded: Loaded, grid: Dim, block: Dim, smem: int, pdl: bool) -> Any:
        check_shape(v, self.arch, grid, block, smem)
        if smem > loaded.shared:
            self.driver.bind()
            self.driver.allow_shared(loaded.function, smem, v.key)
            loaded.shared = smem
        api = self.driver.api
        config = api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block
        config.sharedMemBytes = smem
        config.hStream = self.stream.handle
        if pdl:
            attribute = api.CUlaunchAttribute()
            attribute.id = api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs = [attribute]
            config.numAttrs = 1
        if len(loaded.configs) >= KEPT_SHAPES:
            loaded.configs.clear()
        loaded.configs[(grid, block, smem, pdl)] = config
        return config


def cublaslt_exists() -> bool:
    """Whether both cuBLASLt and its bindings are installed; they come with the extra cu13."""
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    try:
        load_nvidia_dynamic_lib("cublasLt")
    except DynamicLibNotFoundError:
        return False
    return importlib.util.find_spec("nvmath") is not None
