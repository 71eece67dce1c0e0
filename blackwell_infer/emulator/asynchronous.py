"""Copies that run beside the threads (cp.async, cp.async.bulk, TMA) and the mbarriers that count them.

A copy is as late as the program allows: its destination is unwritten from the moment of issue, and the bytes arrive
only when a thread waits for them. PTX ISA sections 9.7.9.25 (copies), 9.7.13.15 (mbarrier).
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from blackwell_infer.emulator.memory import POISON, LaneError

if TYPE_CHECKING:
    from blackwell_infer.emulator.machine import Indices, Lanes, Machine, Values

EXPECTED, PENDING, TRANSACTIONS, PHASE = 0, 20, 40, 62
"""bit positions in our mbarrier word; bit 63 stays zero. The hardware's own layout is opaque to programs."""
LARGEST = (1 << 20) - 1
"""largest arrival count and transaction count of an mbarrier"""


class Load(msgspec.Struct, frozen=True):
    """A bulk copy into shared memory: `to` [bytes] places, what comes there, and the mbarrier that counts it."""

    barrier: int
    lane: int
    to: Any
    data: Any
    known: Any
    nbytes: int


class Store(msgspec.Struct, frozen=True):
    """A bulk copy out of shared memory, read when its group is waited for: `source` places to heap offsets `to`."""

    lane: int
    group: int
    source: Any
    to: Any


class Asynchronous:
    """All copies under way in a machine."""

    def __init__(self, m: Machine) -> None:
        self.m = m
        self.group = np.zeros(m.lanes, np.int64)
        self.bulk_group = np.zeros(m.lanes, np.int64)
        self.reset()

    def reset(self) -> None:
        self.group[:] = 0
        self.bulk_group[:] = 0
        self.pending: list[tuple[Values, Values, Values, Values, Values, int]] = []
        self.loads: list[Load] = []
        self.stores: list[Store] = []
        self.arrivals: list[tuple[int, int, int]] = []
        self.serial = 0

    def check_end(self) -> None:
        """LaneError if a bulk copy is still under way as its CTA ends; `at` is the lane of the machine."""
        for lane in [*(x.lane for x in self.loads), *(x.lane for x in self.stores)]:
            raise LaneError("a bulk copy is under way as its CTA ends: wait for it", lane)

    # -- cp.async ---------------------------------------------------------------------------------------------------

    def copy(self, lanes: Lanes, dst: Values, src: Values, sizes: Values, width: int) -> None:
        """Issue copies of `width` bytes; the tail past `sizes` is zero."""
        m, n = self.m, self.m.indices(lanes)
        _, _, to = m.locate("shared", lanes, dst, width)
        span = np.arange(width)
        data, known = np.zeros((len(n), width), np.uint8), np.full((len(n), width), 255, np.uint8)
        for size in np.unique(sizes).tolist():
            chosen = np.flatnonzero(sizes == size)
            off = src[chosen] & np.uint64(width - 1)
            if off.any():
                raise LaneError(f"misaligned source of an asynchronous copy of {width} bytes",
                                int(chosen[off.argmax()]))
            if size > width:
                raise LaneError(f"{size} source bytes for an asynchronous copy of {width}", int(chosen[0]))
            if size:
                try:
                    at = m.heap.check(src[chosen], size)
                except LaneError as e:
                    raise LaneError(str(e), int(chosen[e.at])) from e
                data[chosen, :size] = m.heap.bytes[at[:, None] + span[:size]]
                known[chosen, :size] = m.heap.known[at[:, None] + span[:size]]
        places = to[:, None] + span
        m.shared[places], m.shared_known[places] = POISON, 0
        self.pending.append((n, self.group[n], places, data, known, self.serial))
        self.serial += 1

    def wait(self, lanes: Lanes, left: int) -> None:
        """Complete all but the newest `left` groups of the active lanes."""
        active = np.zeros(self.m.lanes, bool)
        active[... if lanes is None else lanes] = True
        limit = self.group - left
        self.finish(lambda n, group, serial: active[n] & (group < limit[n]))

    def finish(self, done: Any) -> None:
        """Write the copies that done(lanes, groups, serial) chooses."""
        m, kept = self.m, []
        for n, group, places, data, known, serial in self.pending:
            now = done(n, group, serial)
            if now.all():
                m.shared[places], m.shared_known[places] = data, known
            else:
                m.shared[places[now]], m.shared_known[places[now]] = data[now], known[now]
                rest = ~now
                kept.append((n[rest], group[rest], places[rest], data[rest], known[rest], serial))
        self.pending = kept

    def arrive_after_copies(self, lane: int, barrier: int, counted: bool) -> None:
        """cp.async.mbarrier.arrive: one arrival when the lane's copies so far are there; unless `counted` (.noinc) the
        barrier expects one more."""
        if not counted:
            expected, pending, tx, phase = self.state(barrier)
            self.set_state(barrier, expected, pending + 1, tx, phase)
        self.arrivals.append((lane, barrier, self.serial))

    # -- mbarrier ---------------------------------------------------------------------------------------------------

    def state(self, at: int) -> tuple[int, int, int, int]:
        """(expected, pending, transactions, phase) of the mbarrier at a place of shared memory."""
        m = self.m
        word = int(m.shared[at : at + 8].view(np.uint64)[0])
        if word >> 63 or not m.shared_known[at : at + 8].all():
            raise LaneError("the mbarrier was not initialised", 0)
        tx = word >> TRANSACTIONS & 0x3FFFFF
        return word & LARGEST, word >> PENDING & LARGEST, tx - (1 << 22) * (tx >> 21), word >> PHASE & 1

    def set_state(self, at: int, expected: int, pending: int, tx: int, phase: int) -> None:
        if not 0 <= pending <= LARGEST or not -LARGEST <= tx <= LARGEST:
            raise LaneError(f"the mbarrier leaves its range: {pending} arrivals and {tx} bytes pending", 0)
        if pending == 0 and tx == 0:
            pending, phase = expected, phase ^ 1
        word = expected | pending << PENDING | (tx & 0x3FFFFF) << TRANSACTIONS | phase << PHASE
        self.m.shared[at : at + 8] = np.array([word], np.uint64).view(np.uint8)
        self.m.shared_known[at : at + 8] = 255
        self.m.progress += 1

    def initialise(self, at: int, count: int) -> None:
        if not 1 <= count <= LARGEST:
            raise LaneError(f"an mbarrier of {count} arrivals", 0)
        self.set_state(at, count, count, 0, 0)

    def arrive(self, at: int, count: int, transactions: int) -> int:
        """Expect bytes, then arrive; returns the phase before."""
        expected, pending, tx, phase = self.state(at)
        if count > pending:
            raise LaneError("more threads arrive at an mbarrier than it expects", 0)
        self.set_state(at, expected, pending - count, tx + transactions, phase)
        return phase

    def drop(self, at: int, count: int) -> None:
        """Expect fewer arrivals in the phases to come."""
        expected, pending, tx, phase = self.state(at)
        if not count <= expected:
            raise LaneError("more threads leave an mbarrier than it expects", 0)
        self.set_state(at, expected - count, pending, tx, phase)

    def passed(self, at: int, parity: int) -> bool:
        """Whether the phase of that parity has completed; everything that reports to the barrier arrives first."""
        self.deliver(at)
        return self.state(at)[3] != parity

    def deliver(self, at: int) -> None:
        m = self.m
        for lane, barrier, serial in [a for a in self.arrivals if a[1] == at]:
            self.finish(lambda n, group, s, lane=lane, serial=serial: (n == lane) & (s < serial))
            self.arrive(barrier, 1, 0)
        self.arrivals = [a for a in self.arrivals if a[1] != at]
        ready = [load for load in self.loads if load.barrier == at]
        self.loads = [load for load in self.loads if load.barrier != at]
        for load in ready:
            m.shared[load.to], m.shared_known[load.to] = load.data, load.known
            expected, pending, tx, phase = self.state(at)
            self.set_state(at, expected, pending, tx - load.nbytes, phase)

    # -- bulk copies ------------------------------------------------------------------------------------------------

    def load(self, lane: int, barrier: int, to: Indices, offsets: Indices, inside: Any) -> None:
        """Copy heap bytes at `offsets` (zero where not `inside`) to places `to` of shared memory."""
        m = self.m
        safe = np.where(inside, offsets, 0)
        data, known = np.where(inside, m.heap.bytes[safe], 0), np.where(inside, m.heap.known[safe], 255)
        m.shared[to], m.shared_known[to] = POISON, 0
        self.state(barrier)
        self.loads.append(Load(barrier, lane, to, data.astype(np.uint8), known.astype(np.uint8), len(to)))

    def store(self, lane: int, source: Indices, offsets: Indices) -> None:
        """Copy shared bytes at `source` to heap `offsets` once the lane's group is waited for."""
        self.stores.append(Store(lane, int(self.bulk_group[lane]), source, offsets))

    def wait_stores(self, n: Indices, left: int) -> None:
        """Complete all but the newest `left` groups of bulk stores of the lanes."""
        m, here, kept = self.m, set(n.tolist()), []
        for store in self.stores:
            if store.lane in here and store.group < self.bulk_group[store.lane] - left:
                if not (m.shared_known[store.source] == 255).all():
                    raise LaneError("a bulk copy reads shared memory that nothing wrote", 0)
                m.heap.bytes[store.to], m.heap.known[store.to] = m.shared[store.source], 255
                m.progress += 1
            else:
                kept.append(store)
        self.stores = kept
