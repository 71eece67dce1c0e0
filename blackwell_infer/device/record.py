"""A queue that passes everything on to another one and keeps a list of what was launched, to be launched again."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import msgspec
import numpy as np

from blackwell_infer.device.queue import Captured, Closable, Dim, Fetch, Pending, Queue, Scalar
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.kernels.kernel import Variant
from blackwell_infer.types import Array

T = TypeVar("T", bound=Closable)
Argument = Array | Scalar | None


class Launched(msgspec.Struct, frozen=True):
    """One launch, with the addresses that its arguments had."""

    variant: Variant
    grid: Dim
    block: Dim
    args: tuple[Argument, ...]
    smem: int
    pdl: bool

    def run(self, queue: Queue) -> None:
        """The same launch again."""
        queue.launch(self.variant, self.grid, self.block, *self.args, smem=self.smem, pdl=self.pdl)


class Called(msgspec.Struct, frozen=True):
    """One call of a vendor library."""

    name: str
    call: Callable[[int, int, int], None]
    reads: tuple[Array, ...]
    writes: tuple[Array, ...]

    def run(self, queue: Queue) -> None:
        """The same call again."""
        queue.library(self.name, self.call, self.reads, self.writes)


Recorded = Launched | Called


A = TypeVar("A", bound=Argument)


def bare(arg: A) -> A:
    """An argument that keeps no memory alive, so that recording changes nothing about where a step's arrays lie.

    Replays may still use the address: blocks of an arena never move, and weights belong to the model.
    """
    return msgspec.structs.replace(arg, base=None) if isinstance(arg, Tensor) else arg


class Recorder:
    """`device.queue.Queue` around another; `launches` in order.

    Arrays stay alive as long as the recorder, so that no launch writes where another's input was: launches that run
    again alone then find what they found.
    """

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.arch = queue.arch
        self.sm_count = queue.sm_count
        self.libraries = queue.libraries
        self.launches: list[Recorded] = []
        self._held: list[object] = []

    def launch(self, v: Variant, grid: Dim, block: Dim, *args: Argument, smem: int = 0, pdl: bool = False) -> None:
        self.queue.launch(v, grid, block, *args, smem=smem, pdl=pdl)
        self._held.append(args)
        self.launches.append(Launched(v, grid, block, tuple(map(bare, args)), smem, pdl))

    def library(self, name: str, call: Callable[[int, int, int], None], reads: Sequence[Array],
                writes: Sequence[Array]) -> None:
        self.queue.library(name, call, reads, writes)
        self._held.append((*reads, *writes))
        self.launches.append(Called(name, call, tuple(map(bare, reads)), tuple(map(bare, writes))))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        return self.queue.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.queue.zeros(shape, dtype)

    def put(self, host: np.ndarray[Any, Any]) -> Array:
        return self.queue.put(host)

    def upload(self, dst: Array, *sources: np.ndarray[Any, Any]) -> None:
        self.queue.upload(dst, *sources)

    def download(self, src: Array) -> Pending:
        return self.queue.download(src)

    def fetch(self, parts: Sequence[Array]) -> Fetch:
        return self.queue.fetch(parts)

    def step(self) -> AbstractContextManager[None]:
        return self.queue.step()

    def capture(self, fn: Callable[[], None]) -> Captured:
        return self.queue.capture(fn)

    def owned(self, kind: Callable[[], T]) -> T:
        return self.queue.owned(kind)

    def memory(self) -> tuple[int, int]:
        return self.queue.memory()

    def close(self) -> None:
        self.queue.close()
