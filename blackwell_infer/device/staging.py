"""Copies between host arrays and the device through page-locked memory: uploads in two alternating slots, downloads
into blocks that are used again, or beside what runs on a stream of their own."""
from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from blackwell_infer.device.driver import Driver, PinnedBlock
from blackwell_infer.device.tensor import Tensor

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Move = tuple[Bytes, Bytes]
"""Where bytes go, and where they are"""

SMALL_SLOT = 1 << 20
LARGE_SLOT = 64 << 20
PIECE = 4 << 20
"""Bytes that one thread copies at a time: enough that page faults of a mapped file spread over threads."""


class Uploader:
    """Host bytes to device memory in stream order; the source may be reused on return.

    Two slots alternate: while the device reads one, the host fills the other. At most `2 * slot_bytes` of host memory,
    taken on first use.
    """

    def __init__(self, driver: Driver, stream: Any, slot_bytes: int) -> None:
        self._driver = driver
        self._stream = stream
        self._size = slot_bytes
        self._slots: list[PinnedBlock] = []
        self._events: list[Any] = [None, None]
        self._current = 0
        self._offset = 0
        self._pool: ThreadPoolExecutor | None = None

    def copy(self, ptr: int, parts: Iterable[Bytes]) -> None:
        """Queue the copy of 1-D bytes, end to end, to device address `ptr`. What fits into a slot goes in one copy."""
        if not self._slots:
            self._slots = [self._driver.allocate_pinned(self._size) for _ in range(2)]
        first, moves = self._offset, list[Move]()
        for part in parts:
            done = 0
            while done < part.nbytes:
                if self._offset >= self._size:
                    ptr = self._send(ptr, first, moves)
                    self._turn()
                    first, moves = 0, []
                n = min(part.nbytes - done, self._size - self._offset)
                slot = self._slots[self._current].view
                moves.append((slot[self._offset : self._offset + n], part[done : done + n]))
                self._offset += n
                done += n
        self._send(ptr, first, moves)
        self._offset = -(-self._offset // 256) * 256

    def close(self) -> None:
        """Stop the copying threads, give the memory back, and let go of the stream, which keeps its context."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._slots, self._events, self._stream = [], [None, None], None

    def _turn(self) -> None:
        self._events[self._current] = self._stream.record()
        self._current, self._offset = 1 - self._current, 0
        if self._events[self._current] is not None:
            self._driver.wait(self._events[self._current])

    def _send(self, ptr: int, first: int, moves: list[Move]) -> int:
        """Fill the slot from `first` on and queue its copy to `ptr`; the address behind."""
        if not moves:
            return ptr
        self._fill(moves)
        api, n = self._driver.api, self._offset - first
        start = self._slots[self._current].ptr + first
        self._driver.call(api.cuMemcpyHtoDAsync(ptr, start, n, self._stream.handle), "an upload")
        return ptr + n

    def _fill(self, moves: list[Move]) -> None:
        if sum(src.nbytes for _, src in moves) <= PIECE:
            move_all(moves)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1), "upload")
        list(self._pool.map(move_all, shares(moves)))


def move_all(moves: list[Move]) -> None:
    for dst, src in moves:
        np.copyto(dst, src)


def shares(moves: list[Move]) -> Iterator[list[Move]]:
    """The moves in lists of about `PIECE` bytes, large ones cut."""
    share, size = list[Move](), 0
    for dst, src in moves:
        for i in range(0, src.nbytes, PIECE):
            share.append((dst[i : i + PIECE], src[i : i + PIECE]))
            size += share[-1][1].nbytes
            if size >= PIECE:
                yield share
                share, size = [], 0
    if share:
        yield share


def contiguous_parts(host: np.ndarray[Any, Any]) -> Iterator[Bytes]:
    """The bytes of `host` in C order: one view if it is contiguous, else copies of at most `LARGE_SLOT` at a time."""
    if host.flags.c_contiguous:
        yield host.reshape(-1).view(np.uint8)
    elif host.nbytes <= LARGE_SLOT:
        yield np.ascontiguousarray(host).reshape(-1).view(np.uint8)
    else:
        rows = max(1, LARGE_SLOT * len(host) // host.nbytes)
        for first in range(0, len(host), rows):
            yield from contiguous_parts(host[first] if rows == 1 else host[first:first + rows])


class CudaPending:
    """A download under way: the bytes land in page-locked memory; `result` copies them out."""

    def __init__(self, src: Tensor, block: PinnedBlock, event: Any, downloader: Downloader) -> None:
        self._driver = downloader.driver
        self._block = block
        self._event = event
        self._shape = src.shape
        self._dtype = src.dtype
        self._nbytes = src.nbytes
        self._value: np.ndarray[Any, Any] | None = None
        self._release = weakref.finalize(self, downloader.give, block, event)
        self._release.atexit = False

    def result(self) -> np.ndarray[Any, Any]:
        """Wait for the bytes; every call returns the same array."""
        if self._value is None:
            self._driver.wait(self._event)
            self._value = self._block.view[:self._nbytes].copy().view(self._dtype).reshape(self._shape)
            self._release()
        return self._value


class CudaFetched:
    """A download that was too large for page-locked memory and has already ended."""

    def __init__(self, value: np.ndarray[Any, Any]) -> None:
        self._value = value

    def result(self) -> np.ndarray[Any, Any]:
        return self._value


class Downloader:
    """Device memory to the host in stream order. Blocks grow in powers of two and return here when read or dropped."""

    def __init__(self, driver: Driver, stream: Any) -> None:
        self.driver = driver
        self._stream = stream
        self._free: dict[int, list[tuple[PinnedBlock, Any]]] = {}

    def start(self, src: Tensor) -> CudaPending | CudaFetched:
        """Queue a copy; above 64 MiB it is done before this returns, into ordinary memory."""
        api, what, stream = self.driver.api, "a download", self._stream.handle
        if src.nbytes > LARGE_SLOT:
            value = np.empty(src.shape, src.dtype)
            self.driver.call(api.cuMemcpyDtoHAsync(value.ctypes.data, src.ptr, src.nbytes, stream), what)
            self.driver.wait(self._stream)
            return CudaFetched(value)
        block = self._take(max(4096, 1 << (src.nbytes - 1).bit_length()))
        if src.nbytes:
            self.driver.call(api.cuMemcpyDtoHAsync(block.ptr, src.ptr, src.nbytes, stream), what)
        return CudaPending(src, block, self._stream.record(), self)

    def give(self, block: PinnedBlock, event: Any) -> None:
        """Take back a block that may be used again once `event` has passed."""
        self._free.setdefault(block.nbytes, []).append((block, event))

    def close(self) -> None:
        """Give the memory back, and let go of the stream, which keeps its context."""
        self._free.clear()
        self._stream = None

    def _take(self, size: int) -> PinnedBlock:
        free = self._free.get(size)
        if not free:
            return self.driver.allocate_pinned(size)
        block, event = free.pop(0)
        self.driver.wait(event)
        return block


class Landed:
    """Page-locked memory that arrays lie in: it is given back when the last of them goes."""

    def __init__(self, block: PinnedBlock, fetcher: Fetcher) -> None:
        self.__array_interface__ = {"data": (block.ptr, False), "shape": (block.nbytes,), "typestr": "|u1",
                                    "version": 3}
        weakref.finalize(self, fetcher.give, block).atexit = False


class CudaFetch:
    """Copies under way on a stream of their own: the arrays are the page-locked memory itself."""

    def __init__(self, parts: Sequence[Tensor], landed: Landed, event: Any, driver: Driver) -> None:
        self._shapes = [(part.nbytes, part.dtype, part.shape) for part in parts]
        self._landed = landed
        self._event = event
        self._driver = driver

    @property
    def ready(self) -> bool:
        self._driver.bind()
        return bool(self._event.is_done)

    def result(self) -> list[np.ndarray[Any, Any]]:
        self._driver.wait(self._event)
        whole, at, found = np.asarray(self._landed), 0, list[np.ndarray[Any, Any]]()
        for nbytes, dtype, shape in self._shapes:
            found.append(whole[at:at + nbytes].view(dtype).reshape(shape))
            at += aligned(nbytes)
        return found


class Fetcher:
    """Device memory to the host on `aside`, a stream beside `stream`: what is queued there later waits for the copies,
    they for nothing. Blocks grow in powers of two and are used again."""

    def __init__(self, driver: Driver, stream: Any, aside: Any) -> None:
        self._driver = driver
        self._stream = stream
        self._aside = aside
        self._free: dict[int, list[PinnedBlock]] = {}

    def start(self, parts: Sequence[Tensor]) -> CudaFetch:
        """Queue the copies."""
        size = max(4096, 1 << (sum(aligned(part.nbytes) for part in parts) - 1).bit_length())
        free = self._free.get(size)
        block = free.pop() if free else self._driver.allocate_pinned(size)
        landed, at = Landed(block, self), 0
        for part in parts:
            if part.nbytes:
                call = self._driver.api.cuMemcpyDtoHAsync(block.ptr + at, part.ptr, part.nbytes, self._aside.handle)
                self._driver.call(call, "a copy to the host")
            at += aligned(part.nbytes)
        event = self._aside.record()
        self._stream.wait(event)
        return CudaFetch(parts, landed, event, self._driver)

    def give(self, block: PinnedBlock) -> None:
        """Take back a block whose arrays are gone."""
        if self._aside is not None:
            self._free.setdefault(block.nbytes, []).append(block)

    def close(self) -> None:
        """Give the memory back, and let go of the streams, which keep their context."""
        self._free.clear()
        if self._aside is not None:
            self._aside.close()
        self._stream = self._aside = None


def aligned(nbytes: int) -> int:
    """Room of a part in a block."""
    return -(-nbytes // 256) * 256
