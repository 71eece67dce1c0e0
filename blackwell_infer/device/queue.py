"""The one handle with effects: a stream, its memory, its architecture. Everything above sees only these protocols."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np

from blackwell_infer.device.tensor import Tensor
from blackwell_infer.kernels.kernel import Variant
from blackwell_infer.types import Array

Scalar = int | float
Dim = tuple[int, int, int]


class Closable(Protocol):
    """Something that holds resources until it is closed."""

    def close(self) -> None: ...


T = TypeVar("T", bound=Closable)


class Pending(Protocol):
    """A download under way."""

    def result(self) -> np.ndarray[Any, Any]:
        """Wait for the bytes and return them as a host array of their own."""
        ...


class Fetch(Protocol):
    """Copies to the host under way, beside what runs."""

    @property
    def ready(self) -> bool:
        """Whether `result` would not wait."""
        ...

    def result(self) -> list[np.ndarray[Any, Any]]:
        """Wait for the bytes: host arrays. They keep what they lie in alive, so let go of them soon."""
        ...


class Captured(Protocol):
    """A recorded step. Its memory is the queue's arena, which every other step uses too: one runs after the other."""

    nbytes: int
    """bytes of device memory that the record takes"""

    def run(self) -> None:
        """Queue the step again, in stream order, outside `step()`: same launches, same addresses, new data."""
        ...

    def close(self) -> None:
        """Forget it. Idempotent."""
        ...


class Memory(Protocol):
    """What the engine needs of a backend: arrays in, arrays out, and a scope for a step's temporaries."""

    def put(self, host: np.ndarray[Any, Any]) -> Array:
        """Copy a host array to the backend: a persistent block outside a step, arena memory inside one."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A persistent zero-filled array. OutOfMemoryError gives bytes needed and available."""
        ...

    def download(self, src: Array) -> Pending:
        """Start copying an array to the host, in stream order."""
        ...

    def fetch(self, parts: Sequence[Array]) -> Fetch:
        """Start copying arrays to the host beside what is under way, and before what is queued from now on.

        Only for arrays that are not written by what is under way: whoever wrote them was waited for.
        """
        ...

    def upload(self, dst: Array, *sources: np.ndarray[Any, Any]) -> None:
        """Copy host arrays, end to end, into an existing one, in stream order; they may be reused on return. Many small
        ones are best given at once."""
        ...

    def step(self) -> AbstractContextManager[None]:
        """Scope of one step: memory from `empty` and `put` inside it is reused by the next step."""
        ...

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the backend's memory."""
        ...

    def close(self) -> None:
        """Release everything. Idempotent."""
        ...


class Queue(Memory, Protocol):
    """A stream of launches on one device of architecture `arch` (for example "sm_90a")."""

    arch: str
    sm_count: int
    libraries: frozenset[str]
    """Libraries that may be called through `library`: {"cublaslt"} or nothing."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        """Uninitialised memory: from the step's arena inside `step()`, a block of its own outside."""
        ...

    def launch(self, v: Variant, grid: Dim, block: Dim, *args: Array | Scalar | None, smem: int = 0,
               pdl: bool = False) -> None:
        """Launch with one argument per declared parameter (None = null pointer); types and dtypes are checked.

        Array arguments must be Tensors: the protocols say Array so that ops need no casts.
        """
        ...

    def library(self, name: str, call: Callable[[int, int, int], None], reads: Sequence[Array],
                writes: Sequence[Array]) -> None:
        """Run `call(stream, workspace pointer, workspace bytes)` of a vendor library in stream order."""
        ...

    def capture(self, fn: Callable[[], None]) -> Captured:
        """Record what `fn` launches, as a step of its own, without running it.

        DeviceError if `fn` copies from or to the host; OutOfMemoryError if the record does not fit. Run `fn` once as an
        ordinary step before: that loads its kernels and grows the arena.
        """
        ...

    def owned(self, kind: Callable[[], T]) -> T:
        """The queue's one object made by `kind()`, on first use; closed with the queue (plans of a library)."""
        ...
