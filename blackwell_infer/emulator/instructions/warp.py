"""Warp-wide exchange: PTX ISA sections 9.7.9.6 (shfl.sync) and 9.7.13 (vote, redux, elect)."""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.emulator.instructions.shape import Form, nothing, registers, shaped
from blackwell_infer.emulator.machine import EXITED, Lanes, Machine, Step
from blackwell_infer.emulator.memory import LaneError
from blackwell_infer.emulator.parse import Instruction, PtxError

EVERY = np.uint64(0xFFFFFFFF)
BITS = np.uint64(1) << np.arange(32, dtype=np.uint64)


def present(m: Machine, n: Any) -> Any:
    """Lanes n as a mask per warp [warps] uint64."""
    active = np.zeros(m.lanes, bool)
    active[n] = True
    return (active.reshape(-1, 32) * BITS).sum(1).astype(np.uint64)


def members(m: Machine, lanes: Lanes, mask: Any) -> Any:
    """Active lanes as a mask per warp [warps] uint64. LaneError when a named member is not there, or when a lane that
    is there is not named."""
    mask = np.asarray(mask).astype(np.uint64)
    if lanes is None and (mask == EVERY).all():
        return np.full(m.lanes // 32, EVERY, np.uint64)
    n = m.indices(lanes)
    here = present(m, n)
    wanted = np.broadcast_to(mask, n.shape)
    left_out = wanted >> (n % 32).astype(np.uint64) & np.uint64(1) == 0
    if left_out.any():
        raise LaneError("the mask of a warp-wide instruction leaves out a lane that runs it", int(left_out.argmax()))
    alive = m.place.reshape(-1, 32) != EXITED
    exists = (alive * BITS).sum(1).astype(np.uint64)
    if (wanted & exists[n // 32] & ~here[n // 32]).any():
        raise LaneError("a warp-wide instruction names lanes in its mask that are elsewhere in the program",
                        int(((wanted & exists[n // 32] & ~here[n // 32]) != 0).argmax()))
    return here


def shuffle(mode: str) -> Form:
    def build(m: Machine, ins: Instruction) -> Step:
        targets = registers(ins.operands[0])
        put = m.writer(targets[0])
        valid = m.writer(targets[1]) if len(targets) > 1 else None
        value = m.reader(ins.operands[1], "b32")
        b, c = m.reader(ins.operands[2], "u32"), m.reader(ins.operands[3], "u32")
        mask = m.reader(ins.operands[4], "b32")

        def step(lanes: Lanes) -> None:
            here = members(m, lanes, mask(lanes))
            n = m.indices(lanes)
            lane = n % 32
            delta, clamp = np.asarray(b(lanes)).astype(np.int64) & 31, np.asarray(c(lanes)).astype(np.int64)
            segment, limit = clamp >> 8 & 31, clamp & 31
            low = lane & segment
            high = low | limit & ~segment
            if mode == "up":
                source, good = lane - delta, lane - delta >= high
            elif mode == "down":
                source, good = lane + delta, lane + delta <= high
            elif mode == "bfly":
                source, good = lane ^ delta, (lane ^ delta) <= high
            else:
                source = low | delta & ~segment
                good = source <= high
            source = np.where(good, source, lane)
            absent = here[n // 32] >> source.astype(np.uint64) & np.uint64(1) == 0
            if absent.any():
                raise LaneError(f"a shuffle reads lane {int(source[absent.argmax()])}, which does not take part",
                                int(absent.argmax()))
            everyone = np.full(m.lanes, 0xFFFFFFFF, np.uint32)
            everyone[n] = value(lanes)
            put(lanes, everyone[n - lane + source])
            if valid is not None:
                valid(lanes, np.broadcast_to(good, n.shape))
        return step
    return shaped("prrrr", build)


def vote(mode: str) -> Form:
    def build(m: Machine, ins: Instruction) -> Step:
        put, p = m.writer(ins.operands[0]), m.reader(ins.operands[1], "pred")
        mask = m.reader(ins.operands[2], "b32")

        def step(lanes: Lanes) -> None:
            wanted = np.asarray(mask(lanes)).astype(np.uint64)
            here = members(m, lanes, wanted)
            n = m.indices(lanes)
            yes = np.zeros(m.lanes, bool)
            yes[n] = p(lanes)
            bits = (yes.reshape(-1, 32) * BITS).sum(1).astype(np.uint64)
            ballot, there = bits[n // 32] & wanted, here[n // 32] & wanted
            put(lanes, ballot.astype(np.uint32) if mode == "ballot" else ballot != 0 if mode == "any"
                else (ballot == there) | (ballot == 0) if mode == "uni" else ballot == there)
        return step
    return shaped("rrr", build)


REDUCE: dict[str, Any] = {"add": np.sum, "min": np.min, "max": np.max, "and": np.bitwise_and.reduce,
                          "or": np.bitwise_or.reduce, "xor": np.bitwise_xor.reduce}


def reduce(name: str, kind: str) -> Form:
    def build(m: Machine, ins: Instruction) -> Step:
        put, read = m.writer(ins.operands[0]), m.reader(ins.operands[1], kind)
        mask = m.reader(ins.operands[2], "b32")

        def step(lanes: Lanes) -> None:
            members(m, lanes, mask(lanes))
            rows = m.warps(lanes)
            values = np.broadcast_to(np.asarray(read(lanes)), (rows.size,)).reshape(rows.shape)
            total = REDUCE[name](values, axis=1).astype(values.dtype)
            put(lanes, np.repeat(total, 32))
        return step
    return shaped("rrr", build)


def active_mask(m: Machine, ins: Instruction) -> Step:
    put = m.writer(ins.operands[0])

    def step(lanes: Lanes) -> None:
        n = m.indices(lanes)
        put(lanes, present(m, n)[n // 32].astype(np.uint32))
    return step


def elect(m: Machine, ins: Instruction) -> Step:
    """elect.sync d|p, mask: the lowest active lane gets the predicate."""
    targets = registers(ins.operands[0])
    if len(targets) != 2:
        raise PtxError("a pair d|p is expected")
    lane_out, chosen = (m.writer(o) for o in targets)
    mask = m.reader(ins.operands[1], "b32")

    def step(lanes: Lanes) -> None:
        members(m, lanes, mask(lanes))
        n = m.indices(lanes)
        first = np.full(m.lanes // 32, m.lanes, np.int64)
        np.minimum.at(first, n // 32, n)
        lane_out(lanes, (first[n // 32] % 32).astype(np.uint32))
        chosen(lanes, n == first[n // 32])
    return step


FORMS: dict[str, Form] = {
    **{f"shfl.sync.{mode}.b32": shuffle(mode) for mode in ("up", "down", "bfly", "idx")},
    "vote.sync.ballot.b32": vote("ballot"), "vote.sync.any.pred": vote("any"), "vote.sync.all.pred": vote("all"),
    "vote.sync.uni.pred": vote("uni"),
    **{f"redux.sync.{n}.{k}": reduce(n, k) for n in ("add", "min", "max") for k in ("s32", "u32")},
    **{f"redux.sync.{n}.b32": reduce(n, "b32") for n in ("and", "or", "xor")},
    "activemask.b32": shaped("r", active_mask),
    "elect.sync": shaped("pr", elect),
    "bar.warp.sync": shaped("r", nothing),
}
