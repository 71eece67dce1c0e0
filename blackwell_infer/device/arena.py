"""The memory of a step: a bump allocator over a few large blocks that the next step uses again."""
from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

ALIGN = 256
BLOCK = 32 << 20


class Block(Protocol):
    """Device memory of its own: `nbytes` bytes at `ptr`, freed when the object dies."""

    ptr: int
    nbytes: int


class Lease(msgspec.Struct, frozen=True):
    """What a step's tensor keeps alive: a block of the arena, as step number `step` used it."""

    block: Block
    step: int


def aligned(nbytes: int) -> int:
    """Bytes that an allocation really takes."""
    return -(-nbytes // ALIGN) * ALIGN


class Arena:
    """Hands out addresses in order and takes all of them back at once; blocks are added, never freed or moved.

    So addresses depend only on the sequence of sizes, which a captured step relies on.
    """

    def __init__(self, allocate: Callable[[int], Block]) -> None:
        self._allocate = allocate
        self._blocks: list[Block] = []
        self._block = 0
        self._offset = 0
        self._used = 0
        self.step = 0
        self.peak = 0
        """most bytes that one step used"""
        self.reserved = 0
        """bytes of all blocks"""

    def reset(self) -> None:
        """Begin a step: everything that the last one took is free again."""
        self._block = self._offset = self._used = 0
        self.step += 1

    def take(self, nbytes: int) -> tuple[int, Lease]:
        """Address of `nbytes` bytes, 256-byte aligned; adds a block if none has room (its errors pass through)."""
        size = aligned(nbytes)
        while self._block < len(self._blocks):
            block = self._blocks[self._block]
            if self._offset + size <= block.nbytes:
                break
            self._block, self._offset = self._block + 1, 0
        else:
            block = self._allocate(max(BLOCK, -(-size // BLOCK) * BLOCK))
            self._blocks.append(block)
            self.reserved += block.nbytes
        ptr = block.ptr + self._offset
        self._offset += size
        self._used += size
        self.peak = max(self.peak, self._used)
        return ptr, Lease(block, self.step)
