"""cvt of 8-, 6- and 4-bit floats: PTX ISA section 9.7.9.21; formats: OCP 8-bit floating point (OFP8) and OCP MX 1.0.

Two values share a register, the first source in the high half; a register of e2m1x2 is .b8, first source in the high
nibble. To a narrow float: nearest even, saturating to the largest finite value. NaN becomes 0x7F in e4m3 and e5m2 and
the largest positive value in the formats without one. ue8m0 is 2 ** (byte - 127) of the magnitude, 0xFF is NaN.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import msgspec
import numpy as np

from blackwell_infer.emulator.instructions.convert import from_half, to_half
from blackwell_infer.emulator.instructions.shape import Form, op

F32, U8, U16, U32 = np.float32, np.uint8, np.uint16, np.uint32


class Narrow(msgspec.Struct, frozen=True):
    """A format: its NumPy type, bits of an element in a packed pair, largest finite value, and what NaN becomes."""

    dtype: Any
    bits: int
    largest: float
    nan: int

    def encode(self, x: Any) -> Any:
        """float32 to codes (uint8)."""
        x = np.asarray(x, F32)
        codes = np.clip(x, F32(-self.largest), F32(self.largest)).astype(self.dtype).view(U8)
        return np.where(np.isnan(x), U8(self.nan), codes)

    def decode(self, codes: Any) -> Any:
        """Codes (uint8) to float32; bits above the element are ignored."""
        width = 4 if self.bits == 4 else 8 if self.nan == 0x7F else 6
        return (np.asarray(codes).astype(U8) & U8((1 << width) - 1)).view(self.dtype).astype(F32)


E4M3 = Narrow(ml_dtypes.float8_e4m3fn, 8, 448.0, 0x7F)
E5M2 = Narrow(ml_dtypes.float8_e5m2, 8, 57344.0, 0x7F)
E3M2 = Narrow(ml_dtypes.float6_e3m2fn, 8, 28.0, 0x1F)
E2M3 = Narrow(ml_dtypes.float6_e2m3fn, 8, 7.5, 0x1F)
E2M1 = Narrow(ml_dtypes.float4_e2m1fn, 4, 6.0, 0x7)
FORMATS = {"e4m3": E4M3, "e5m2": E5M2, "e3m2": E3M2, "e2m3": E2M3, "e2m1": E2M1}


def scale_up(x: Any) -> Any:
    """float32 to the ue8m0 code of the next power of two not below |x|."""
    return power(x, 1)


def scale_down(x: Any) -> Any:
    """float32 to the ue8m0 code of the next power of two not above |x|, at least 2 ** -127."""
    return power(x, 0)


def power(x: Any, up: int) -> Any:
    """Code of |x| by its float32 bits: the exponent, plus one when rounding up drops anything."""
    bits = np.asarray(x, F32).view(U32) & U32(0x7FFFFFFF)
    exponent, mantissa = bits >> U32(23), bits & U32(0x7FFFFF)
    # 2 ** -127 is subnormal in float32: exponent 0, mantissa 0x400000.
    dropped = np.where(exponent == 0, mantissa > 0x400000, mantissa != 0)
    return np.where(bits > 0x7F800000, U32(0xFF), exponent + (dropped & bool(up))).astype(U8)


def finite(code: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """.satfinite: what is beyond 2 ** 127 becomes it; NaN stays."""
    return lambda x: np.where(np.isnan(np.asarray(x)), U8(0xFF), np.minimum(code(x), U8(0xFE)))


def scale_value(codes: Any) -> Any:
    """ue8m0 codes to float32."""
    exponent = np.minimum(np.asarray(codes).astype(np.int32), 254) - 127
    return np.where(np.asarray(codes) == 0xFF, F32(np.nan), np.ldexp(F32(1), exponent))


def joined(high: Any, low: Any, bits: int) -> Any:
    if bits == 4:
        return (high << U8(4) | low & U8(15)).astype(U8)
    return high.astype(U16) << U16(8) | low.astype(U16)


def parts(word: Any, bits: int) -> tuple[Any, Any]:
    """(high, low) codes of a register."""
    word = np.asarray(word).astype(U16)
    return (word >> U16(bits)).astype(U8), (word & U16((1 << bits) - 1)).astype(U8)


def halves(word: Any, brain: bool) -> tuple[Any, Any]:
    """(high, low) float32 of a register of two 16-bit floats."""
    word = np.asarray(word)
    return from_half(word >> U32(16), brain), from_half(word & U32(0xFFFF), brain)


def both_halves(high: Any, low: Any, brain: bool) -> Any:
    return to_half(high, brain).astype(U32) << U32(16) | to_half(low, brain).astype(U32)


def positive(x: Any) -> Any:
    """.relu: negative values become zero, NaN stays."""
    return np.where(x < 0, F32(0), np.where(x == 0, F32(0), x))


def same(x: Any) -> Any:
    return x


def from_pair(encode: Any, bits: int, first: Any = same) -> Form:
    return op(("f32", "f32"), lambda a, b: joined(encode(first(np.asarray(a))), encode(first(np.asarray(b))), bits))


def from_word(encode: Any, bits: int, brain: bool, first: Any = same) -> Form:
    def run(word: Any) -> Any:
        high, low = halves(word, brain)
        return joined(encode(first(high)), encode(first(low)), bits)
    return op(("b32",), run)


def to_word(decode: Any, bits: int, brain: bool, last: Any = same) -> Form:
    def run(word: Any) -> Any:
        high, low = parts(word, bits)
        return both_halves(last(decode(high)), last(decode(low)), brain)
    return op(("b8" if bits == 4 else "b16",), run)


RELU = (("", same), (".relu", positive))
SCALES = {"rp": scale_up, "rz": scale_down, "rp.satfinite": finite(scale_up), "rz.satfinite": finite(scale_down)}
WORDS = {"f16x2": False, "bf16x2": True}

FORMS: dict[str, Form] = {
    **{f"cvt.rn.satfinite{r}.{n}x2.f32": from_pair(f.encode, f.bits, g) for n, f in FORMATS.items() for r, g in RELU},
    **{f"cvt.rn.satfinite{r}.{n}x2.{w}": from_word(f.encode, f.bits, brain, g) for n, f in FORMATS.items()
       for w, brain in WORDS.items() for r, g in RELU},
    **{f"cvt.rn{r}.{w}.{n}x2": to_word(f.decode, f.bits, brain, g) for n, f in FORMATS.items()
       for w, brain in WORDS.items() for r, g in RELU},
    **{f"cvt.{r}.ue8m0x2.f32": from_pair(f, 8) for r, f in SCALES.items()},
    **{f"cvt.{r}.ue8m0x2.bf16x2": from_word(f, 8, True) for r, f in SCALES.items()},
    "cvt.rn.bf16x2.ue8m0x2": to_word(scale_value, 8, True),
}
