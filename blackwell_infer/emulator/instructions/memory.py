"""Loads, stores, atomics and asynchronous copies: PTX ISA section 9.7.9."""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.emulator.instructions.shape import Form, nothing, registers, shaped
from blackwell_infer.emulator.machine import NUMPY, Lanes, Machine, Step
from blackwell_infer.emulator.parse import Instruction, PtxError

TYPES = ("b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64")


def load(space: str, kind: str) -> Form:
    def build(m: Machine, ins: Instruction) -> Step:
        targets = [m.writer(o) for o in registers(ins.operands[0])]
        at, dtype = m.address(ins.operands[1]), NUMPY[kind]

        def step(lanes: Lanes) -> None:
            values = m.load(space, lanes, at(lanes), dtype, len(targets))
            for i, put in enumerate(targets):
                put(lanes, np.ascontiguousarray(values[:, i]))
        return step
    return build


def load_parameter(kind: str) -> Form:
    def build(m: Machine, ins: Instruction) -> Step:
        targets = [m.writer(o) for o in registers(ins.operands[0])]
        base = ins.operands[1]
        dtype = NUMPY[kind]
        start = m.parameter[base.items[0].name] + base.value
        end = start + dtype.itemsize * len(targets)

        def step(lanes: Lanes) -> None:
            values = m.params[start:end].copy().view(dtype)
            for i, put in enumerate(targets):
                put(lanes, values[i])
        return step
    return build


def store(space: str, kind: str) -> Form:
    def build(m: Machine, ins: Instruction) -> Step:
        at, dtype = m.address(ins.operands[0]), NUMPY[kind]
        reads = [m.reader(o, f"u{8 * m.width(o)}" if m.width(o) > dtype.itemsize else kind)
                 for o in registers(ins.operands[1])]

        def step(lanes: Lanes) -> None:
            addresses = at(lanes)
            values = np.empty((len(addresses), len(reads)), dtype)
            for i, read in enumerate(reads):
                values[:, i] = np.asarray(read(lanes)).astype(dtype, copy=False)
            m.store(space, lanes, addresses, values)
        return step
    return build


ATOMICS: dict[str, Any] = {
    "add": lambda a, b: a + b, "min": min, "max": max, "and": lambda a, b: a & b, "or": lambda a, b: a | b,
    "exch": lambda a, b: b, "xor": lambda a, b: a ^ b}


def cells(m: Machine, space: str, lanes: Lanes, addresses: Any, dtype: Any) -> tuple[Any, Any]:
    """(memory as elements, index of each lane's element) for a read-modify-write."""
    m.load(space, lanes, addresses, dtype, 1)                       # checks that something was written
    m.progress += 1
    data, _, offsets = m.locate(space, lanes, addresses, dtype.itemsize)
    return data[: len(data) // dtype.itemsize * dtype.itemsize].view(dtype), offsets // dtype.itemsize


def atomic(space: str, kind: str, name: str, returns: bool) -> Form:
    """Read-modify-write, lane after lane (the order among lanes is unspecified on hardware)."""
    function = ATOMICS[name]

    def build(m: Machine, ins: Instruction) -> Step:
        put = m.writer(ins.operands[0]) if returns else None
        place, value = ins.operands[-2:]
        at, read, dtype = m.address(place), m.reader(value, kind), NUMPY[kind]

        def step(lanes: Lanes) -> None:
            addresses = at(lanes)
            words, index = cells(m, space, lanes, addresses, dtype)
            values = np.broadcast_to(np.asarray(read(lanes)), index.shape)
            old = words[index]
            if put is None and name == "add" and dtype.kind != "f":
                np.add.at(words, index, values)
                return
            if len(np.unique(index)) == len(index) and name == "add":
                words[index] = old + values
            else:
                for i, (j, v) in enumerate(zip(index.tolist(), values, strict=True)):
                    old[i] = words[j]
                    words[j] = function(words[j], v)
            if put is not None:
                put(lanes, old)
        return step
    return shaped("rar" if returns else "ar", build)


def compare_and_swap(space: str, kind: str) -> Form:
    def build(m: Machine, ins: Instruction) -> Step:
        put, at = m.writer(ins.operands[0]), m.address(ins.operands[1])
        expect, new, dtype = m.reader(ins.operands[2], kind), m.reader(ins.operands[3], kind), NUMPY[kind]

        def step(lanes: Lanes) -> None:
            words, index = cells(m, space, lanes, at(lanes), dtype)
            e, n = np.broadcast_to(expect(lanes), index.shape), np.broadcast_to(new(lanes), index.shape)
            old = words[index]
            for i, j in enumerate(index.tolist()):
                old[i] = words[j]
                if words[j] == e[i]:
                    words[j] = n[i]
            put(lanes, old)
        return step
    return shaped("rarr", build)


def copy_async(m: Machine, ins: Instruction) -> Step:
    """cp.async dst, src, width{, source bytes}: the rest of the width is zero."""
    dst, src = m.address(ins.operands[0]), m.address(ins.operands[1])
    width = ins.operands[2].value
    if width not in ((4, 8, 16) if ins.op.startswith("cp.async.ca") else (16,)):
        raise PtxError(f"a copy of {width} bytes; .ca copies 4, 8 or 16, .cg 16")
    size = m.reader(ins.operands[3], "u32") if len(ins.operands) > 3 else None

    def step(lanes: Lanes) -> None:
        to, source = dst(lanes), src(lanes)
        n = np.full(len(to), width) if size is None else np.broadcast_to(np.asarray(size(lanes)), (len(to),))
        m.asynchronous.copy(lanes, to, source, n.astype(np.int64), width)
    return step


def commit(m: Machine, ins: Instruction) -> Step:
    def step(lanes: Lanes) -> None:
        m.asynchronous.group[... if lanes is None else lanes] += 1
    return step


def wait_group(m: Machine, ins: Instruction) -> Step:
    left = ins.operands[0].value
    return lambda lanes: m.asynchronous.wait(lanes, left)


def wait_all(m: Machine, ins: Instruction) -> Step:
    def step(lanes: Lanes) -> None:
        m.asynchronous.group[... if lanes is None else lanes] += 1
        m.asynchronous.wait(lanes, 0)
    return step


HINTS = ("", ".L1::no_allocate", ".L1::evict_first", ".L1::evict_last", ".L2::128B", ".L2::256B",
         ".L1::no_allocate.L2::128B", ".L1::no_allocate.L2::256B", ".L2::cache_hint",
         ".L1::no_allocate.L2::cache_hint")
SPACES = {"": "", ".global": "global", ".shared": "shared", ".local": "local", ".const": "global",
          ".shared::cta": "shared"}
ORDERS = ("", ".relaxed.gpu", ".relaxed.cta", ".acq_rel.gpu")
SHARABLE = {s: space for s, space in SPACES.items() if s not in (".local", ".const")}
WRITABLE = {s: space for s, space in SPACES.items() if s != ".const"}
ATOMIC_TYPES = {"add": ("u32", "s32", "u64", "f32"), **dict.fromkeys(("min", "max"), ("u32", "s32", "u64", "s64")),
                **dict.fromkeys(("and", "or", "xor"), ("b32", "b64"))}
EXCHANGED = {"exch": ("b32", "b64")}
"""which types an atomic takes; an exchange returns what it replaces, so it has no `red` form"""
COUNTS = {"": "1", ".v2": "2", ".v4": "4"}
"""a vector operand for `shaped`"""

FORMS: dict[str, Form] = {
    **{f"ld{o}{s}{v}.{k}": shaped(f"{n}a", load(space, k)) for o in ("", ".volatile") for s, space in SPACES.items()
       for v, n in COUNTS.items() for k in TYPES},
    **{f"ld.global{nc}{h}{v}.{k}": shaped(f"{n}a/r" if h.endswith("cache_hint") else f"{n}a", load("global", k))
       for nc in ("", ".nc") for h in HINTS for v, n in COUNTS.items() for k in TYPES},
    **{f"ld.global.cg{v}.{k}": shaped(f"{n}a", load("global", k)) for v, n in COUNTS.items() for k in TYPES},
    **{f"ld.param{v}.{k}": shaped(f"{n}a", load_parameter(k)) for v, n in COUNTS.items() for k in TYPES},
    **{f"st{o}{s}{v}.{k}": shaped(f"a{n}", store(space, k)) for o in ("", ".volatile") for s, space in WRITABLE.items()
       for v, n in COUNTS.items() for k in TYPES},
    **{f"atom{o}{s}.{n}.{k}": atomic(space, k, n, True) for o in ORDERS for s, space in SHARABLE.items()
       for n, kinds in {**ATOMIC_TYPES, **EXCHANGED}.items() for k in kinds},
    **{f"red{o}{s}.{n}.{k}": atomic(space, k, n, False) for o in ORDERS for s, space in SHARABLE.items()
       for n, kinds in ATOMIC_TYPES.items() for k in kinds},
    **{f"atom{o}{s}.cas.{k}": compare_and_swap(space, k) for o in ORDERS for s, space in SHARABLE.items()
       for k in ("b32", "b64")},
    **{f"cp.async.{c}.shared{t}.global{h}": shaped("aai/r", copy_async) for c in ("ca", "cg") for t in ("", "::cta")
       for h in ("", ".L2::128B", ".L2::256B")},
    "cp.async.commit_group": shaped("", commit),
    "cp.async.wait_group": shaped("i", wait_group),
    "cp.async.wait_all": shaped("", wait_all),
    "membar.gl": nothing, "membar.cta": nothing, "membar.sys": nothing, "fence.acq_rel.gpu": nothing,
    "fence.acq_rel.cta": nothing, "fence.proxy.async": nothing, "fence.proxy.async.shared::cta": nothing,
    "griddepcontrol.wait": nothing, "griddepcontrol.launch_dependents": nothing, "nanosleep.u32": nothing,
    "prefetch.global.L2": nothing, "prefetch.global.L1": nothing,
}
