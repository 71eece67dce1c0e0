"""Floating point: PTX ISA sections 9.7.3 to 9.7.5. Results are IEEE except the `.approx` forms, which are computed in
float64 and rounded once (the hardware's last bits differ). `add.f32` and `mul.f32` without a rounding mode are not
contracted here, though an assembler may."""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.emulator.instructions.integer import COMBINE, set_predicate
from blackwell_infer.emulator.instructions.shape import Form, op

F32, F64 = np.float32, np.float64


def exact_sum(a: Any, b: Any) -> Any:
    """a + b in float64 rounded to odd, so that a later rounding to float32 is that of the exact sum."""
    s = a + b
    t = s - a
    error = (a - (s - t)) + (b - t)
    bits = np.asarray(s).view(np.int64)
    even = (bits & 1) == 0
    away = np.where((error > 0) == (s > 0), 1, -1)
    fixed = np.where((error != 0) & even & np.isfinite(s), bits + away, bits)
    return fixed.view(F64)


def fused(a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding: the product of two float32 is exact in float64."""
    return exact_sum(np.atleast_1d(np.asarray(a, F64) * np.asarray(b, F64)), np.asarray(c, F64)).astype(F32)


def fused_down(a: Any, b: Any, c: Any) -> Any:
    """a * b + c rounded towards minus infinity."""
    wide = exact_sum(np.atleast_1d(np.asarray(a, F64) * np.asarray(b, F64)), np.asarray(c, F64))
    near = wide.astype(F32)
    return np.where(near.astype(F64) > wide, np.nextafter(near, F32(-np.inf)), near)


def flush(x: Any) -> Any:
    """.ftz: subnormal values become zero of their sign."""
    x = np.asarray(x)
    return np.where(np.abs(x) < np.finfo(F32).tiny, np.copysign(F32(0), x), x).astype(F32)


def approximate(function: Any, ftz: bool) -> Any:
    if ftz:
        return lambda a: flush(function(flush(a).astype(F64)).astype(F32))
    return lambda a: np.asarray(function(np.asarray(a, F64))).astype(F32)


def flushed(function: Any) -> Any:
    return lambda *args: flush(function(*(flush(a) for a in args)))


def reciprocal_root(x: Any) -> Any:
    return 1 / np.sqrt(x)


def saturate(x: Any) -> Any:
    """Clamp to [0, 1]; NaN gives 0."""
    return np.where(np.isnan(x), F32(0), np.clip(x, F32(0), F32(1))).astype(F32)


def maximum_nan(a: Any, b: Any) -> Any:
    return np.maximum(a, b)


APPROXIMATE = {"ex2.approx": np.exp2, "lg2.approx": np.log2, "rcp.approx": np.reciprocal, "sqrt.approx": np.sqrt,
               "rsqrt.approx": reciprocal_root, "sin.approx": np.sin, "cos.approx": np.cos, "tanh.approx": np.tanh}


def unordered(compare: Any) -> Any:
    return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)


def ordered(compare: Any) -> Any:
    return lambda a, b: compare(a, b) & ~np.isnan(a) & ~np.isnan(b)


COMPARE: dict[str, Any] = {
    "eq": np.equal, "ne": ordered(np.not_equal), "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "equ": unordered(np.equal), "neu": np.not_equal, "ltu": unordered(np.less),
    "leu": unordered(np.less_equal), "gtu": unordered(np.greater), "geu": unordered(np.greater_equal),
    "num": lambda a, b: ~np.isnan(a) & ~np.isnan(b), "nan": lambda a, b: np.isnan(a) | np.isnan(b)}


def packed16(function: Any, brain: bool) -> Any:
    """Apply a float32 function to both halves of 32-bit registers and round each result once."""
    from blackwell_infer.emulator.instructions.convert import from_half, to_half

    def run(*args: Any) -> Any:
        low = function(*(from_half(np.asarray(a) & np.uint32(0xFFFF), brain) for a in args))
        high = function(*(from_half(np.asarray(a) >> np.uint32(16), brain) for a in args))
        return to_half(low, brain).astype(np.uint32) | to_half(high, brain).astype(np.uint32) << np.uint32(16)
    return run


def single16(function: Any, brain: bool) -> Any:
    from blackwell_infer.emulator.instructions.convert import from_half, to_half
    return lambda *args: to_half(function(*(from_half(np.asarray(a), brain) for a in args)), brain)


BINARY = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}


def wide_fused(a: Any, b: Any, c: Any) -> Any:
    """Products and sums of 16-bit floats are exact in float64 but for the sum's last bit, rounded to odd."""
    return exact_sum(np.atleast_1d(np.asarray(a, F64) * np.asarray(b, F64)), np.asarray(c, F64))


FORMS: dict[str, Form] = {
    **{f"{n}{r}.f32": op(("f32", "f32"), f) for n, f in BINARY.items() for r in ("", ".rn")},
    **{f"{n}{r}.ftz.f32": op(("f32", "f32"), flushed(f)) for n, f in BINARY.items() for r in ("", ".rn")},
    **{f"{n}{r}.f64": op(("f64", "f64"), f) for n, f in BINARY.items() for r in ("", ".rn")},
    "fma.rn.f32": op(("f32", "f32", "f32"), fused),
    "fma.rm.f32": op(("f32", "f32", "f32"), fused_down),
    "fma.rn.ftz.f32": op(("f32", "f32", "f32"), flushed(fused)),
    "mad.rn.f32": op(("f32", "f32", "f32"), fused),
    "div.rn.f32": op(("f32", "f32"), lambda a, b: a / b),
    "div.full.f32": op(("f32", "f32"), lambda a, b: a / b),
    "div.approx.f32": op(("f32", "f32"), lambda a, b: a / b),
    "div.rn.f64": op(("f64", "f64"), lambda a, b: a / b),
    "rcp.rn.f32": op(("f32",), lambda a: F32(1) / a),
    "sqrt.rn.f32": op(("f32",), np.sqrt),
    **{f"{n}.f32": op(("f32",), approximate(f, False)) for n, f in APPROXIMATE.items()},
    **{f"{n}.ftz.f32": op(("f32",), approximate(f, True)) for n, f in APPROXIMATE.items()},
    **{f"{n}.{k}": op((k, k), f) for n, f in (("min", np.fmin), ("max", np.fmax)) for k in ("f32", "f64")},
    "min.NaN.f32": op(("f32", "f32"), np.minimum),
    "max.NaN.f32": op(("f32", "f32"), maximum_nan),
    **{f"abs.{k}": op((k,), np.abs) for k in ("f32", "f64")},
    **{f"neg.{k}": op((k,), np.negative) for k in ("f32", "f64")},
    "add.sat.f32": op(("f32", "f32"), lambda a, b: saturate(a + b)),
    "copysign.f32": op(("f32", "f32"), lambda a, b: np.copysign(b, a)),
    **{f"setp.{c}.{k}": set_predicate(k, f, None) for c, f in COMPARE.items() for k in ("f32", "f64")},
    **{f"setp.{c}.{b}.{k}": set_predicate(k, f, g) for c, f in COMPARE.items() for b, g in COMBINE.items()
       for k in ("f32", "f64")},
    **{f"{n}{r}.{t}x2": op(("b32", "b32"), packed16(f, t == "bf16")) for n, f in BINARY.items() for r in ("", ".rn")
       for t in ("f16", "bf16")},
    **{f"{n}{r}.{t}": op(("b16", "b16"), single16(f, t == "bf16")) for n, f in BINARY.items() for r in ("", ".rn")
       for t in ("f16", "bf16")},
    **{f"fma.rn.{t}x2": op(("b32", "b32", "b32"), packed16(wide_fused, t == "bf16")) for t in ("f16", "bf16")},
    **{f"fma.rn.{t}": op(("b16", "b16", "b16"), single16(wide_fused, t == "bf16")) for t in ("f16", "bf16")},
    **{f"{n}.{t}x2": op(("b32", "b32"), packed16(f, t == "bf16")) for n, f in (("min", np.fmin), ("max", np.fmax))
       for t in ("f16", "bf16")},
    **{f"{n}.NaN.{t}x2": op(("b32", "b32"), packed16(f, t == "bf16"))
       for n, f in (("min", np.minimum), ("max", maximum_nan)) for t in ("f16", "bf16")},
}
