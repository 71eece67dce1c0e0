"""The memory of a step: ranges of a few large blocks that later tensors of the step, and the next step, use again."""
from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

ALIGN = 256
BLOCK = 32 << 20


class Block(Protocol):
    """Device memory of its own: `nbytes` bytes at `ptr`, freed when the object dies."""

    ptr: int
    nbytes: int


class Lease:
    """What a step's tensors keep alive: `size` bytes at `ptr` of a block, as step number `step` used them.

    When the last tensor dies, the arena may hand the bytes out again within the step: everything on a queue runs in
    order, so whoever writes them next runs after whoever read them last.
    """

    __slots__ = ("_arena", "block", "ptr", "size", "step")

    def __init__(self, arena: Arena, block: Block, ptr: int, size: int, step: int) -> None:
        self._arena = arena
        self.block = block
        self.ptr = ptr
        self.size = size
        self.step = step

    def __del__(self) -> None:
        self._arena.give_back(self)


def aligned(nbytes: int) -> int:
    """Bytes that an allocation really takes."""
    return -(-nbytes // ALIGN) * ALIGN


class Arena:
    """Memory of one step: the lowest free range that fits is taken, and given back when its lease dies.

    Blocks are added, never freed or moved, and ranges depend only on the sequence of takes and deaths, which a captured
    step relies on.
    """

    def __init__(self, allocate: Callable[[int], Block]) -> None:
        self._allocate = allocate
        self._blocks: list[Block] = []
        self._free: list[list[tuple[int, int]]] = []
        self._used = 0
        self.step = 0
        self.peak = 0
        """most bytes that one step used at once"""
        self.reach = 0
        """bytes of the first block up to the end of the last range that was ever in use there"""
        self.reserved = 0
        """bytes of all blocks"""

    def reset(self) -> None:
        """Begin a step: everything that the last one took is free again, also what tensors still name."""
        self._free = [[(block.ptr, block.ptr + block.nbytes)] for block in self._blocks]
        self._used = 0
        self.step += 1

    def reserve(self, nbytes: int) -> None:
        """Have so many bytes, the first ones in one block, before steps need them (errors of the allocation pass
        through). A step takes no more than the `reach` of the same takes and deaths elsewhere."""
        if self.reserved < nbytes:
            self._add(nbytes - self.reserved)

    def take(self, nbytes: int) -> tuple[int, Lease]:
        """Address of `nbytes` bytes, 256-byte aligned; adds a block if none has room (its errors pass through)."""
        size = max(aligned(nbytes), ALIGN)
        for block, free in zip(self._blocks, self._free, strict=True):
            for i, (start, end) in enumerate(free):
                if end - start >= size:
                    if end - start == size:
                        del free[i]
                    else:
                        free[i] = (start + size, end)
                    return self._lease(block, start, size)
        block = self._add(size)
        self._free[-1] = [(block.ptr + size, block.ptr + block.nbytes)] if size < block.nbytes else []
        return self._lease(block, block.ptr, size)

    def _add(self, nbytes: int) -> Block:
        block = self._allocate(-(-nbytes // BLOCK) * BLOCK)
        self._blocks.append(block)
        self._free.append([(block.ptr, block.ptr + block.nbytes)])
        self.reserved += block.nbytes
        return block

    def _lease(self, block: Block, ptr: int, size: int) -> tuple[int, Lease]:
        self._used += size
        self.peak = max(self.peak, self._used)
        if block is self._blocks[0]:
            self.reach = max(self.reach, ptr + size - block.ptr)
        return ptr, Lease(self, block, ptr, size, self.step)

    def give_back(self, lease: Lease) -> None:
        """Free a range of the present step; ranges of earlier steps are free already."""
        if lease.step != self.step:
            return
        self._used -= lease.size
        free = self._free[next(i for i, block in enumerate(self._blocks) if block is lease.block)]
        start, end = lease.ptr, lease.ptr + lease.size
        i = bisect_left(free, (start, end))
        if i < len(free) and free[i][0] == end:
            end = free.pop(i)[1]
        if i and free[i - 1][1] == start:
            start = free.pop(i - 1)[0]
            i -= 1
        free.insert(i, (start, end))
