"""Launcher of ptx/stream: reads an array from end to end, to learn the bandwidth of memory."""
from __future__ import annotations

from blackwell_infer.device.queue import Queue
from blackwell_infer.kernels.cost import moved
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.types import Array

TILE = 8192
"""32-bit words that one CTA reads"""

READ = Kernel("stream/read.cu", "read_words", (Param("words", "in", "uint32"), Param("out", "out", "uint32")),
              cost=moved)
KERNELS = (READ,)


def read(q: Queue, words: Array, out: Array) -> None:
    """out [n] = exclusive or of each of the n tiles of words [n * TILE], uint32."""
    q.launch(READ.variant(), (words.shape[0] // TILE, 1, 1), (256, 1, 1), words, out)
