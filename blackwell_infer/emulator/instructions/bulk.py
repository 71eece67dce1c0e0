"""mbarrier, cp.async.bulk and cp.async.bulk.tensor: PTX ISA sections 9.7.9.25 and 9.7.13.15. State in asynchronous.py.

Tensor copies take the emulated device's own descriptors (tensormap.py), from a parameter or from global memory.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from blackwell_infer.emulator.instructions.shape import Form, nothing, shaped
from blackwell_infer.emulator.machine import Lanes, Machine, Step
from blackwell_infer.emulator.memory import LaneError
from blackwell_infer.emulator.parse import Instruction, Operand, PtxError
from blackwell_infer.emulator.tensormap import TensorMap, decode

LARGEST_BULK = 1 << 20


def barrier_places(m: Machine, o: Operand, space: str) -> Callable[[Lanes], Any]:
    """Places of mbarriers in the machine's shared memory."""
    at = m.address(o)
    return lambda lanes: place(m, lanes, at(lanes), space, 8)


def place(m: Machine, lanes: Lanes, addresses: Any, space: str, nbytes: int) -> Any:
    if space == "":
        space, addresses = m.resolve(addresses)
    if space != "shared":
        raise PtxError(f"shared memory is needed here, not {space} memory")
    return m.locate("shared", lanes, addresses, nbytes)[2]


def each(m: Machine, lanes: Lanes, *values: Any) -> Iterator[tuple[int, ...]]:
    """(place among the active lanes, value of each array) per lane."""
    n = m.count(lanes)
    return zip(range(n), *(np.broadcast_to(np.asarray(v), (n,)).tolist() for v in values), strict=True)


def per_lane(m: Machine, lanes: Lanes, function: Callable[..., Any], *values: Any) -> list[Any]:
    """function(values of one lane) for each lane; faults are charged to it."""
    results = []
    for i, *row in each(m, lanes, *values):
        try:
            results.append(function(*row))
        except LaneError as e:
            raise LaneError(str(e), i) from e
    return results


def initialise(space: str) -> Form:
    def build(m: Machine, ins: Instruction) -> Step:
        at, count = barrier_places(m, ins.operands[0], space), m.reader(ins.operands[1], "u32")
        return lambda lanes: none(per_lane(m, lanes, m.asynchronous.initialise, at(lanes), count(lanes)))
    return build


def none(results: list[Any]) -> None:
    """Drop results."""


def invalidate(space: str) -> Form:
    def build(m: Machine, ins: Instruction) -> Step:
        at = barrier_places(m, ins.operands[0], space)

        def one(where: int) -> None:
            m.asynchronous.state(where)
            m.shared_known[where : where + 8] = 0
        return lambda lanes: none(per_lane(m, lanes, one, at(lanes)))
    return build


def arrive(space: str, expects: bool, drops: bool = False) -> Form:
    """mbarrier.arrive{.expect_tx}: state, [mbarrier]{, count or bytes}."""

    def build(m: Machine, ins: Instruction) -> Step:
        put, at = m.writer(ins.operands[0]), barrier_places(m, ins.operands[1], space)
        number = m.reader(ins.operands[2], "u32") if len(ins.operands) > 2 else lambda lanes: 1

        def one(where: int, n: int) -> int:
            if drops:
                m.asynchronous.drop(where, n)
            return m.asynchronous.arrive(where, 1 if expects else n, n if expects else 0)

        def step(lanes: Lanes) -> None:
            put(lanes, np.array(per_lane(m, lanes, one, at(lanes), number(lanes)), np.uint64))
        return step
    return build


def expect(space: str, sign: int) -> Form:
    """mbarrier.expect_tx and complete_tx: [mbarrier], bytes."""

    def build(m: Machine, ins: Instruction) -> Step:
        at, number = barrier_places(m, ins.operands[0], space), m.reader(ins.operands[1], "u32")

        def one(where: int, n: int) -> None:
            expected, pending, tx, phase = m.asynchronous.state(where)
            m.asynchronous.set_state(where, expected, pending, tx + sign * n, phase)
        return lambda lanes: none(per_lane(m, lanes, one, at(lanes), number(lanes)))
    return build


def test(space: str, parity: bool) -> Form:
    """mbarrier.test_wait and try_wait: predicate, [mbarrier], state or parity{, time}."""

    def build(m: Machine, ins: Instruction) -> Step:
        put, at = m.writer(ins.operands[0]), barrier_places(m, ins.operands[1], space)
        which = m.reader(ins.operands[2], "u32" if parity else "u64")

        def step(lanes: Lanes) -> None:
            asked = {}

            def one(where: int, phase: int) -> bool:
                if (where, phase) not in asked:
                    asked[where, phase] = m.asynchronous.passed(where, phase)
                return asked[where, phase]
            passed = np.array(per_lane(m, lanes, one, at(lanes), which(lanes)), bool)
            put(lanes, passed)
            if not passed.all():
                m.waits_in_vain(m.indices(lanes)[~passed])
        return step
    return build


def arrive_after_copies(counted: bool, space: str) -> Form:
    def build(m: Machine, ins: Instruction) -> Step:
        at = barrier_places(m, ins.operands[0], space)

        def step(lanes: Lanes) -> None:
            per_lane(m, lanes, lambda lane, where: m.asynchronous.arrive_after_copies(lane, where, counted),
                     m.indices(lanes), at(lanes))
        return step
    return build


# -- bulk copies ------------------------------------------------------------------------------------------------------


def load(m: Machine, ins: Instruction) -> Step:
    """cp.async.bulk to shared memory: [dst], [src], bytes, [mbarrier]."""
    dst, src = m.address(ins.operands[0]), m.address(ins.operands[1])
    size, barrier = m.reader(ins.operands[2], "u32"), barrier_places(m, ins.operands[3], "shared")

    def one(lane: int, to: int, source: int, n: int, where: int) -> None:
        first, offsets = span(m, lane, to, source, n)
        m.asynchronous.load(lane, where, first, offsets, np.ones(n, bool))

    return lambda lanes: none(per_lane(m, lanes, one, m.indices(lanes), dst(lanes), src(lanes), size(lanes),
                                       barrier(lanes)))


def store(m: Machine, ins: Instruction) -> Step:
    """cp.async.bulk from shared memory: [dst], [src], bytes."""
    dst, src, size = m.address(ins.operands[0]), m.address(ins.operands[1]), m.reader(ins.operands[2], "u32")

    def one(lane: int, to: int, source: int, n: int) -> None:
        places, offsets = span(m, lane, source, to, n)
        m.asynchronous.store(lane, places, offsets)

    return lambda lanes: none(per_lane(m, lanes, one, m.indices(lanes), dst(lanes), src(lanes), size(lanes)))


def span(m: Machine, lane: int, shared: int, outside: int, n: int) -> tuple[Any, Any]:
    """(places in shared memory, offsets in the heap) of a bulk copy of n bytes."""
    if n % 16 or shared % 16 or outside % 16 or not 0 < n <= LARGEST_BULK:
        raise LaneError(f"a bulk copy of {n} bytes between {shared:#x} and {outside:#x}: multiples of 16 are needed", 0)
    first = inside_shared(m, lane, shared, n)
    at = int(m.heap.check(np.array([outside], np.uint64), n)[0])
    return first + np.arange(n), at + np.arange(n)


def inside_shared(m: Machine, lane: int, start: int, n: int) -> int:
    if start + n > m.shared_size:
        raise LaneError(f"a bulk copy of {n} bytes at offset {start} of {m.shared_size} bytes of shared memory", 0)
    return int(m.shared_base[lane]) + start


def descriptor(m: Machine, address: int) -> TensorMap:
    """The tensor map at a generic address."""
    where = np.array([address], np.uint64)
    if address % 64:
        raise LaneError(f"the tensor map at {address:#x} is not aligned to 64 bytes", 0)
    space, inner = m.resolve(where)
    data, _, offsets = m.locate(space, None, inner, 1) if space == "param" else (
        m.heap.bytes, m.heap.known, m.heap.check(inner, 128))
    return decode(data[int(offsets[0]) : int(offsets[0]) + 128].tobytes())


def tile(m: Machine, lane: int, shared: int, map_address: int, coordinates: tuple[int, ...],
         rank: int) -> tuple[Any, Any, Any]:
    """(places in shared memory, heap offsets, whether inside the tensor), one per byte of the box."""
    tensor = descriptor(m, map_address)
    if rank != len(tensor.dims):
        raise LaneError(f"a copy of {rank} dimensions with a tensor map of {len(tensor.dims)}", 0)
    if shared % 128:
        raise LaneError(f"the tile at {shared:#x} of shared memory is not aligned to 128 bytes", 0)
    offsets = tensor.swizzled(shared)
    inside_shared(m, lane, shared, int(offsets.max()) + 1 - shared)
    addresses, inside = tensor.places(coordinates)
    at = np.zeros(len(addresses), np.int64)
    if inside.any():
        at[inside] = m.heap.check(addresses[inside].astype(np.uint64), 1)
    return int(m.shared_base[lane]) + offsets, at, inside


def tensor_operands(m: Machine, o: Operand, rank: int) -> tuple[Callable[[Lanes], Any], list[Callable[[Lanes], Any]]]:
    """Readers of the map's address and of the coordinates in [map, {c0, c1, ...}]."""
    base, coordinates = o.items
    if len(coordinates.items) != rank:
        raise PtxError(f"{rank} coordinates expected")
    return m.reader(base, "u64"), [m.reader(c, "s32") for c in coordinates.items]


def tensor_load(rank: int) -> Form:
    """cp.async.bulk.tensor to shared memory: [dst], [map, coordinates], [mbarrier]."""

    def build(m: Machine, ins: Instruction) -> Step:
        dst, barrier = m.address(ins.operands[0]), barrier_places(m, ins.operands[2], "shared")
        base, coordinates = tensor_operands(m, ins.operands[1], rank)

        def one(lane: int, to: int, where: int, source: int, *c: int) -> None:
            m.asynchronous.load(lane, where, *tile(m, lane, to, source, c, rank))

        return lambda lanes: none(per_lane(m, lanes, one, m.indices(lanes), dst(lanes), barrier(lanes), base(lanes),
                                           *(c(lanes) for c in coordinates)))
    return build


def tensor_store(rank: int) -> Form:
    """cp.async.bulk.tensor from shared memory: [map, coordinates], [src]; what is outside the tensor is dropped."""

    def build(m: Machine, ins: Instruction) -> Step:
        base, coordinates = tensor_operands(m, ins.operands[0], rank)
        src = m.address(ins.operands[1])

        def one(lane: int, source: int, to: int, *c: int) -> None:
            places, at, inside = tile(m, lane, source, to, c, rank)
            m.asynchronous.store(lane, places[inside], at[inside])

        return lambda lanes: none(per_lane(m, lanes, one, m.indices(lanes), src(lanes), base(lanes),
                                           *(c(lanes) for c in coordinates)))
    return build


def commit(m: Machine, ins: Instruction) -> Step:
    def step(lanes: Lanes) -> None:
        m.asynchronous.bulk_group[... if lanes is None else lanes] += 1
    return step


def wait(m: Machine, ins: Instruction) -> Step:
    left = ins.operands[0].value
    return lambda lanes: m.asynchronous.wait_stores(m.indices(lanes), left)


def policy(m: Machine, ins: Instruction) -> Step:
    put = m.writer(ins.operands[0])
    return lambda lanes: put(lanes, np.uint64(0))


SHARED = {"": "", ".shared": "shared", ".shared::cta": "shared"}
CACHED = ("", ".L2::cache_hint")
INTO, TO = ("shared::cluster", "shared::cta"), "mbarrier::complete_tx::bytes"
FORMS: dict[str, Form] = {
    **{f"mbarrier.init{s}.b64": shaped("ar", initialise(v)) for s, v in SHARED.items()},
    **{f"mbarrier.inval{s}.b64": shaped("a", invalidate(v)) for s, v in SHARED.items()},
    **{f"mbarrier.arrive{x}{o}{s}.b64": shaped("rar" if x else "ra/r", arrive(v, bool(x)))
       for s, v in SHARED.items() for x in ("", ".expect_tx") for o in ("", ".release.cta", ".relaxed.cta")},
    **{f"mbarrier.arrive_drop{s}.b64": shaped("ra/r", arrive(v, False, drops=True)) for s, v in SHARED.items()},
    **{f"mbarrier.expect_tx{o}{s}.b64": shaped("ar", expect(v, 1)) for s, v in SHARED.items()
       for o in ("", ".relaxed.cta")},
    **{f"mbarrier.complete_tx{o}{s}.b64": shaped("ar", expect(v, -1)) for s, v in SHARED.items()
       for o in ("", ".relaxed.cta")},
    **{f"mbarrier.{t}_wait{p}{o}{s}.b64": shaped("rar/r", test(v, bool(p))) for s, v in SHARED.items()
       for t in ("test", "try") for p in ("", ".parity") for o in ("", ".acquire.cta", ".relaxed.cta")},
    **{f"cp.async.mbarrier.arrive{i}{s}.b64": shaped("a", arrive_after_copies(bool(i), v)) for s, v in SHARED.items()
       for i in ("", ".noinc")},
    **{f"cp.async.bulk.{i}.global.{TO}{c}": shaped("aara/r", load) for i in INTO for c in CACHED},
    **{f"cp.async.bulk.global.shared::cta.bulk_group{c}": shaped("aar/r", store) for c in CACHED},
    **{f"cp.async.bulk.tensor.{r}d.{i}.global{t}.{TO}{c}": shaped("ata/r", tensor_load(r)) for r in range(1, 6)
       for i in INTO for t in ("", ".tile") for c in CACHED},
    **{f"cp.async.bulk.tensor.{r}d.global.shared::cta{t}.bulk_group{c}": shaped("ta/r", tensor_store(r))
       for r in range(1, 6) for t in ("", ".tile") for c in CACHED},
    "cp.async.bulk.commit_group": shaped("", commit),
    "cp.async.bulk.wait_group": shaped("i", wait), "cp.async.bulk.wait_group.read": shaped("i", wait),
    "cp.async.bulk.prefetch.L2.global": nothing, "prefetch.tensormap": nothing, "prefetch.param.tensormap": nothing,
    **{f"fence.{f}": nothing for f in ("mbarrier_init.release.cluster", "proxy.async.global", "proxy.alias",
                                       "proxy.async.shared::cluster", "acq_rel.cluster", "acq_rel.sys", "sc.gpu",
                                       "sc.cta")},
    **{f"createpolicy.fractional.L2::{p}.b64": policy for p in ("evict_first", "evict_last", "evict_normal",
                                                                "evict_unchanged")},
    **{f"setmaxnreg.{d}.sync.aligned.u32": nothing for d in ("inc", "dec")},
}
