"""Named barriers of the CTAs (bar, barrier.cta): PTX ISA section 9.7.13.1. Sixteen per CTA, counted in threads."""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.emulator.machine import BLOCKED, EXITED, Indices, Machine
from blackwell_infer.emulator.memory import LaneError
from blackwell_infer.emulator.parse import PtxError

NUMBERS = 16


class Barriers:
    """Who waits where. A barrier opens once as many threads have arrived as it expects: a given count, or every thread
    of the CTA that has not exited."""

    def __init__(self, m: Machine) -> None:
        self.m = m
        self.number = np.full(m.lanes, -1)
        self.expected = np.zeros(m.lanes, np.int64)
        self.resume = np.zeros(m.lanes, np.int64)
        self.extra = np.zeros(m.ctas * NUMBERS, np.int64)
        self.vote = np.zeros(m.lanes, bool)

    def reset(self) -> None:
        self.number[:] = -1
        self.extra[:] = 0

    def arrive(self, n: Indices, number: Any, count: Any, then: int, wait: bool, aligned: bool) -> Indices:
        """Lanes n arrive at barriers, `count` 0 meaning the whole CTA, and stop there if they `wait`. Returns the lanes
        that may go on, at their `resume` blocks."""
        m = self.m
        number, count = (np.broadcast_to(np.asarray(v).astype(np.int64), n.shape) for v in (number, count))
        if ((number < 0) | (number >= NUMBERS)).any():
            raise LaneError(f"barrier {int(number.max())} does not exist; there are {NUMBERS}", int(number.argmax()))
        if (count % 32 != 0).any():
            raise LaneError("a barrier's thread count must be a multiple of 32", int((count % 32 != 0).argmax()))
        if aligned:
            here = np.bincount(n // 32, minlength=m.lanes // 32)
            alive = (m.place.reshape(-1, 32) != EXITED).sum(axis=1)
            partial = (here > 0) & (here != alive)
            if partial.any():
                bad = int(np.flatnonzero(n // 32 == partial.argmax())[0])
                raise LaneError("only part of a warp is at an aligned barrier", bad)
        m.progress += 1
        if wait:
            m.place[n], self.number[n], self.expected[n], self.resume[n] = BLOCKED, number, count, then
        else:
            if not count.all():
                raise LaneError("an arrival without waiting needs a thread count", int(count.argmin()))
            key = m.cta[n] * NUMBERS + number
            np.add.at(self.extra, key, 1)
            if (self.extra[key] >= count).any():
                raise LaneError("enough threads arrive at a barrier to open it, but none waits there",
                                int((self.extra[key] >= count).argmax()))
        return self.release()

    def release(self) -> Indices:
        """Let the lanes of every full barrier go on."""
        m = self.m
        waiting = np.flatnonzero(m.place == BLOCKED)
        if not len(waiting):
            return waiting
        alive = np.bincount(m.cta[m.place != EXITED], minlength=m.ctas)
        key = m.cta[waiting] * NUMBERS + self.number[waiting]
        arrived = np.bincount(key, minlength=m.ctas * NUMBERS) + self.extra
        wanted = np.where(self.expected[waiting] > 0, self.expected[waiting], alive[m.cta[waiting]])
        if (arrived[key] > wanted).any():
            raise PtxError(f"more threads arrive at barrier {int(self.number[waiting][(arrived[key] > wanted)][0])} "
                           "than it expects")
        go: Indices = waiting[arrived[key] == wanted]
        if len(go):
            self.extra[m.cta[go] * NUMBERS + self.number[go]] = 0
            m.place[go] = self.resume[go]
        return go

    def reduce(self, go: Indices, kind: str) -> Any:
        """The votes [n] of released lanes, combined over each barrier: popc, and, or."""
        key = self.m.cta[go] * NUMBERS + self.number[go]
        yes = np.bincount(key, weights=self.vote[go], minlength=self.m.ctas * NUMBERS)[key].astype(np.uint32)
        total = np.bincount(key, minlength=self.m.ctas * NUMBERS)[key]
        return yes if kind == "popc" else yes == total if kind == "and" else yes > 0
