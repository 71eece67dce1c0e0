"""Warp matrix instructions: ldmatrix, stmatrix and mma.sync, PTX ISA sections 9.7.14.5 (fragments) and 9.7.15.

With g = lane / 4 and t = lane % 4, register r of a fragment holds, for row g, the `e` elements e*t .. e*t+e-1 of one
8 x 4e tile. A is the tiles [[a0, a2], [a1, a3]], B (as n x k) [b0, b1], C and D [[c0 c1], [c2 c3]] in pairs.
Products are exact and summed in float64, then added to C and rounded once; the hardware rounds differently in the last
bits (accumulation order and width are not documented).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from blackwell_infer.emulator.instructions.convert import from_half
from blackwell_infer.emulator.instructions.shape import Form, registers, shaped
from blackwell_infer.emulator.machine import Lanes, Machine, Step
from blackwell_infer.emulator.parse import Instruction

F64 = np.float64


def eight(dtype: Any) -> Callable[[Any], Any]:
    return lambda words: words.view(np.uint8).view(dtype).astype(F64)


DECODE: dict[str, Callable[[Any], Any]] = {
    "f16": lambda words: words.view(np.float16).astype(F64),
    "bf16": lambda words: from_half(words.view(np.uint16), True).astype(F64),
    "tf32": lambda words: (words & np.uint32(0xFFFFE000)).view(np.float32).astype(F64),
    "s8": lambda words: words.view(np.int8).astype(F64),
    "u8": lambda words: words.view(np.uint8).astype(F64),
    "e4m3": eight(ml_dtypes.float8_e4m3fn),
    "e5m2": eight(ml_dtypes.float8_e5m2),
}
"""how to read the elements in 32-bit registers"""


def read(m: Machine, o: Any, kind: str = "b32") -> Callable[[Lanes, int], Any]:
    """Register values as [warps, 32]."""
    source = m.reader(o, kind)
    return lambda lanes, warps: np.broadcast_to(np.asarray(source(lanes)), (warps * 32,)).reshape(warps, 32)


def together(m: Machine, operand: Any, kind: str = "b32") -> Callable[[Lanes, int], Any]:
    """The registers of a vector operand as [registers, warps * 32]."""
    sources = [m.reader(o, kind) for o in registers(operand)]

    def run(lanes: Lanes, warps: int) -> Any:
        values = [np.asarray(source(lanes)) for source in sources]
        out = np.empty((len(values), warps * 32), values[0].dtype)
        for i, v in enumerate(values):
            out[i] = v
        return out
    return run


def rows_of(values: Any, warps: int) -> Any:
    """Elements of the registers of A, in their order, to [warps, 16, k]."""
    n = len(values) // 2
    return values.reshape(n, 2, warps, 8, -1).transpose(2, 1, 3, 0, 4).reshape(warps, 16, -1)


def columns_of(values: Any, warps: int) -> Any:
    """Elements of the registers of B, in their order, to [warps, 8, k]."""
    return values.reshape(len(values), warps, 8, -1).transpose(1, 2, 0, 3).reshape(warps, 8, -1)


def accumulator(m: Machine, d: Any, c: Any, kind: str) -> Callable[[Lanes, int, Any, Any], None]:
    """add(lanes, warps, rows [warps, 16, k], columns [warps, 8, k]): D = A B + C."""
    put, start = [m.writer(o) for o in registers(d)], together(m, c, kind)

    def add(lanes: Lanes, warps: int, rows: Any, columns: Any) -> None:
        product = np.matmul(rows, columns.transpose(0, 2, 1)).reshape(warps, 2, 8, 4, 2)
        product = product.transpose(1, 4, 0, 2, 3).reshape(4, warps * 32)
        before = start(lanes, warps)
        wide = F64 if before.dtype.kind == "f" else np.int64
        after = (product.astype(wide, copy=False) + before).astype(before.dtype)
        for p, values in zip(put, after, strict=True):
            p(lanes, values)
    return add


def multiply(a_kind: str, b_kind: str, out: str) -> Form:
    """mma.sync.aligned.m16n8kK.row.col with float32 or int32 accumulators."""
    decode_a, decode_b = DECODE[a_kind], DECODE[b_kind]

    def build(m: Machine, ins: Instruction) -> Step:
        d, a, b, c = ins.operands
        ra, rb, add = together(m, a), together(m, b), accumulator(m, d, c, out)

        def step(lanes: Lanes) -> None:
            w = len(m.warps(lanes))
            add(lanes, w, rows_of(decode_a(ra(lanes, w)), w), columns_of(decode_b(rb(lanes, w)), w))
        return step
    return build


def load_matrix(count: int, transpose: bool) -> Form:
    """ldmatrix: lane 8i + r gives the address of row r of matrix i; lane l receives row l/4, columns 2(l%4), +1."""

    def build(m: Machine, ins: Instruction) -> Step:
        put = [m.writer(o) for o in registers(ins.operands[0])]
        at = m.address(ins.operands[1])

        def step(lanes: Lanes) -> None:
            rows = m.warps(lanes)
            addresses = at(lanes).reshape(rows.shape)[:, : 8 * count].reshape(-1)
            owners = rows[:, : 8 * count].reshape(-1)
            data = m.load("shared", owners, addresses, np.dtype(np.uint16), 8)             # [w * 8 count, 8]
            data = data.reshape(len(rows), count, 8, 8)
            if transpose:
                data = data.transpose(0, 1, 3, 2)
            words = np.ascontiguousarray(data).view(np.uint32)                             # [w, count, 8, 4]
            for i, p in enumerate(put):
                p(lanes, np.ascontiguousarray(words[:, i]).reshape(-1))
        return step
    return build


def store_matrix(count: int, transpose: bool) -> Form:
    """stmatrix: the inverse of ldmatrix."""

    def build(m: Machine, ins: Instruction) -> Step:
        at = m.address(ins.operands[0])
        sources = [read(m, o) for o in registers(ins.operands[1])]

        def step(lanes: Lanes) -> None:
            rows = m.warps(lanes)
            w = len(rows)
            words = np.stack([s(lanes, w).reshape(w, 8, 4) for s in sources], axis=1)
            data = np.ascontiguousarray(words).view(np.uint16).reshape(w, count, 8, 8)
            if transpose:
                data = data.transpose(0, 1, 3, 2)
            addresses = at(lanes).reshape(rows.shape)[:, : 8 * count].reshape(-1)
            m.store("shared", rows[:, : 8 * count].reshape(-1), addresses,
                    np.ascontiguousarray(data).reshape(-1, 8))
        return step
    return build


SHARED = (".shared", ".shared::cta")
SIXTEEN = ("f16", "bf16")
FORMS: dict[str, Form] = {
    **{f"ldmatrix.sync.aligned.m8n8.x{n}{t}{s}.b16": shaped(f"{n}a", load_matrix(n, bool(t))) for n in (1, 2, 4)
       for t in ("", ".trans") for s in SHARED},
    **{f"stmatrix.sync.aligned.m8n8.x{n}{t}{s}.b16": shaped(f"a{n}", store_matrix(n, bool(t))) for n in (1, 2, 4)
       for t in ("", ".trans") for s in SHARED},
    **{f"mma.sync.aligned.m16n8k{k}.row.col.f32.{a}.{a}.f32": shaped(f"4{n}4", multiply(a, a, "f32")) for a in SIXTEEN
       for k, n in ((8, "21"), (16, "42"))},
    **{f"mma.sync.aligned.m16n8k{k}.row.col.f32.tf32.tf32.f32": shaped(f"4{n}4", multiply("tf32", "tf32", "f32"))
       for k, n in ((4, "21"), (8, "42"))},
    **{f"mma.sync.aligned.m16n8k32.row.col.s32.{a}.{b}.s32": shaped("4424", multiply(a, b, "s32")) for a in ("s8", "u8")
       for b in ("s8", "u8")},
    **{f"mma.sync.aligned.m16n8k32.row.col.f32.{a}.{b}.f32": shaped("4424", multiply(a, b, "f32"))
       for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")},
}
