"""cvt and cvta: PTX ISA sections 9.7.9 (data conversion). Integer targets saturate, NaN becomes 0."""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.emulator.instructions.shape import Form, op
from blackwell_infer.emulator.machine import NUMPY, Machine, Step
from blackwell_infer.emulator.memory import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW
from blackwell_infer.emulator.parse import Instruction

F32, F64 = np.float32, np.float64
INTEGERS = ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64")


def from_half(bits: Any, brain: bool) -> Any:
    """16-bit floats to float32."""
    b = np.asarray(bits).astype(np.uint16, copy=False)
    return (b.astype(np.uint32) << np.uint32(16)).view(F32) if brain else b.view(np.float16).astype(F32)


def to_half(x: Any, brain: bool) -> Any:
    """float32 or float64 to 16-bit floats, round to nearest even; NaN becomes 0x7FFF."""
    x = np.asarray(x)
    if brain:
        if x.dtype == F64:
            x = odd_single(x)
        b = x.astype(F32).view(np.uint32)
        out = ((b + np.uint32(0x7FFF) + (b >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    else:
        out = x.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), out)


def odd_single(x: Any) -> Any:
    """float64 to float32 rounded to odd, so that a second rounding is harmless."""
    near = x.astype(F32)
    bits = near.view(np.int32)
    back = near.astype(F64)
    inexact = (back != x) & np.isfinite(back) & np.isfinite(x)
    toward = np.where(np.abs(back) > np.abs(x), -1, 0).astype(np.int32)
    return np.where(inexact, (bits + toward) | 1, bits).astype(np.int32).view(F32)


def to_integer(kind: str, rounding: Any) -> Any:
    info = np.iinfo(NUMPY[kind].name)

    def run(x: Any) -> Any:
        r = rounding(np.asarray(x, F64))
        inside = np.clip(r, float(info.min), float(info.max))
        safe = np.where(np.isnan(r) | (inside >= float(info.max)) | (inside <= float(info.min)), 0, inside)
        out = safe.astype(NUMPY[kind])
        out = np.where(inside >= float(info.max), NUMPY[kind].type(info.max), out)
        out = np.where(inside <= float(info.min), NUMPY[kind].type(info.min), out)
        return np.where(np.isnan(r), NUMPY[kind].type(0), out)
    return run


def integer(target: str, source: str) -> Form:
    """Truncate or extend; a register may be wider than the type."""
    def build(m: Machine, ins: Instruction) -> Step:
        put, dst = m.writer(ins.operands[0]), NUMPY[target]
        read, src = reading(m, ins, source), NUMPY[source]
        return lambda lanes: put(lanes, np.asarray(read(lanes)).astype(src).astype(dst))
    return build


def reading(m: Machine, ins: Instruction, source: str) -> Any:
    """cvt reads 8-bit types from 16- or 32-bit registers."""
    o = ins.operands[1]
    if m.width(o):
        return m.reader(o, f"u{8 * m.width(o)}")
    return m.reader(o, source)


def from_integer(source: str, dtype: Any) -> Form:
    def build(m: Machine, ins: Instruction) -> Step:
        put, read = m.writer(ins.operands[0]), reading(m, ins, source)
        return lambda lanes: put(lanes, np.asarray(read(lanes)).astype(NUMPY[source]).astype(dtype))
    return build


def pair(brain: bool, relu: bool = False) -> Form:
    """Two float32 in one register: the first source goes to the high half."""
    def pack(high: Any, low: Any) -> Any:
        if relu:
            high, low = np.fmax(high, F32(0)), np.fmax(low, F32(0))
        return to_half(high, brain).astype(np.uint32) << np.uint32(16) | to_half(low, brain).astype(np.uint32)
    return op(("f32", "f32"), pack)


def saturate(x: Any) -> Any:
    return np.where(np.isnan(x), F32(0), np.clip(x, F32(0), F32(1))).astype(F32)


def shift_window(space: str, sign: int) -> Form:
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "global": 0, "const": 0, "param": PARAM_WINDOW}[space]
    return op(("u64",), lambda a: a + np.uint64(window) if sign > 0 else a - np.uint64(window))


def tf32(x: Any) -> Any:
    """cvt.rna.tf32: 10 mantissa bits, ties away from zero; NaN becomes 0x7FFFFFFF."""
    b = np.asarray(x, F32).view(np.uint32)
    return np.where(np.isnan(x), np.uint32(0x7FFFFFFF), (b + np.uint32(0x1000)) & np.uint32(0xFFFFE000))


ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}

FORMS: dict[str, Form] = {
    **{f"cvt.{a}.{b}": integer(a, b) for a in INTEGERS for b in INTEGERS},
    **{f"cvt.{r}.{a}.{b}": op((b,), to_integer(a, f)) for r, f in ROUND.items() for a in INTEGERS
       for b in ("f32", "f64")},
    **{f"cvt.{r}.ftz.{a}.f32": op(("f32",), to_integer(a, f)) for r, f in ROUND.items() for a in INTEGERS},
    **{f"cvt.{r}.f32.f32": op(("f32",), f) for r, f in ROUND.items()},
    **{f"cvt.rn.f32.{b}": from_integer(b, F32) for b in INTEGERS},
    **{f"cvt.rn.f64.{b}": from_integer(b, F64) for b in INTEGERS},
    "cvt.sat.f32.f32": op(("f32",), saturate),
    "cvt.f64.f32": op(("f32",), lambda a: np.asarray(a).astype(F64)),
    "cvt.rn.f32.f64": op(("f64",), lambda a: np.asarray(a).astype(F32)),
    "cvt.f32.f16": op(("b16",), lambda a: from_half(a, False)),
    "cvt.f32.bf16": op(("b16",), lambda a: from_half(a, True)),
    "cvt.rn.f16.f32": op(("f32",), lambda a: to_half(a, False)),
    "cvt.rn.bf16.f32": op(("f32",), lambda a: to_half(a, True)),
    "cvt.rn.f16x2.f32": pair(False),
    "cvt.rn.bf16x2.f32": pair(True),
    "cvt.rn.relu.bf16x2.f32": pair(True, relu=True),
    "cvt.rn.f16.s16": op(("s16",), lambda a: np.asarray(a).astype(np.float16)),
    "cvt.rn.f16.s32": op(("s32",), lambda a: np.asarray(a).astype(np.float16)),
    "cvt.rna.tf32.f32": op(("f32",), tf32),
    **{f"cvta.to.{s}.u64": shift_window(s, -1) for s in ("shared", "local", "global", "const", "param")},
    **{f"cvta.{s}.u64": shift_window(s, 1) for s in ("shared", "local", "global", "const", "param")},
}
