"""cvt: rounding, saturation and NaN, between all types that kernels use."""
from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from emulated.snippet import run

EDGES = np.array([0, -0.0, .5, -.5, 1.5, 2.5, -2.5, .499, 127.5, 128, 255.5, 256, -128.5, -129, 32767.5,
                  2**31 - 64, 2**31, -2.0**31, -3e9, 4294967040, 4294967296, 1e20, -1e20, np.inf, -np.inf, np.nan,
                  1e-40, 3e38, 7e4, -7e4, 65504, 65520], np.float32)
ROUND = {"rni": lambda x: round(x), "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
RANGES = {"s32": (-2**31, 2**31 - 1), "u32": (0, 2**32 - 1), "s64": (-2**63, 2**63 - 1), "u64": (0, 2**64 - 1)}


@pytest.mark.parametrize("rounding", ROUND)
@pytest.mark.parametrize("kind", RANGES)
def test_to_integers_saturates(rounding: str, kind: str) -> None:
    width = kind[1:]
    got = run(f"cvt.{rounding}.{kind}.f32 %d, %a;", {"a": EDGES.view(np.uint32)}, {"d": f"b{width}"})["d"]
    low, high = RANGES[kind]
    for x, y in zip(EDGES.tolist(), got.tolist(), strict=True):
        expected = 0 if math.isnan(x) else (high if x > 0 else low) if math.isinf(x) else min(
            max(ROUND[rounding](Fraction(x)), low), high)
        assert y == expected % 2 ** int(width), x


@pytest.mark.parametrize(("source", "values"), [
    ("s32", [0, 1, -1, 2**24 + 1, -(2**24 + 3), 2**31 - 1, -2**31]), ("u32", [0, 2**24 + 1, 2**32 - 1]),
    ("s64", [2**53 + 1, -2**63, 2**40 + 2**16 + 1]), ("u64", [2**64 - 1, 2**63 + 2**39, 2**63 + 2**39 + 1])])
def test_from_integers_rounds_to_nearest_even(source: str, values: list[int]) -> None:
    width = int(source[1:])
    a = np.array([v % 2**width for v in (values * 32)[:32]], f"u{width // 8}")
    got = run(f"cvt.rn.f32.{source} %d, %a;", {"a": a}, {"d": "f32"})["d"]
    for v, y in zip((values * 32)[:32], got.tolist(), strict=True):
        shift = max(v.__abs__().bit_length() - 24, 0)
        assert y == float(round(Fraction(v, 2**shift)) * 2**shift), v


@pytest.mark.parametrize(("form", "bits"), [("s8", 8), ("u8", 8), ("s16", 16), ("u16", 16)])
def test_integers_truncate_and_extend(form: str, bits: int) -> None:
    a = np.random.default_rng(0).integers(0, 2**32, 32, np.uint32)
    got = run(f"cvt.s64.{form} %d, %a;", {"a": a}, {"d": "b64"})["d"].view(np.int64)
    low = a.astype(np.int64) & (1 << bits) - 1
    assert np.array_equal(got, np.where((form[0] == "s") & (low >> bits - 1 == 1), low - (1 << bits), low))


@pytest.mark.parametrize(("name", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_halves(name: str, dtype: type) -> None:
    with np.errstate(over="ignore"):
        expected = EDGES.astype(dtype)
    words = {"a": EDGES.view(np.uint32)}
    got = run(f"cvt.rn.{name}.f32 %h, %a; cvt.f32.{name} %back, %h;", words, {"h": "b16", "back": "f32"})
    nan = np.isnan(EDGES)
    assert np.array_equal(got["h"][~nan], expected.view(np.uint16)[~nan])
    assert (got["h"][nan] == 0x7FFF).all()
    assert np.array_equal(got["back"], expected.astype(np.float32), equal_nan=True)
    pair = run(f"cvt.rn.{name}x2.f32 %d, %a, %b;", {**words, "b": np.zeros(32, np.uint32)}, {"d": "b32"})["d"]
    assert np.array_equal(pair >> 16, got["h"]) and not (pair & 0xFFFF).any()


NARROW = {"e4m3": (ml_dtypes.float8_e4m3fn, 448, 0x7F, 8), "e5m2": (ml_dtypes.float8_e5m2, 57344, 0x7F, 8),
          "e3m2": (ml_dtypes.float6_e3m2fn, 28, 0x1F, 8), "e2m3": (ml_dtypes.float6_e2m3fn, 7.5, 0x1F, 8),
          "e2m1": (ml_dtypes.float4_e2m1fn, 6, 0x7, 4)}
VALUES = np.array([0, -0.0, .24, .25, .26, .75, -1.25, 1.75, 2.5, 3.5, 5, -5, 5.01, 6, 7, -1e9, 448, 464, 465,
                   500, -448, .001, 2**-9, 2**-10, 1.5 * 2**-10, 57344, 61440, 1e30, np.inf,
                   -np.inf, np.nan, -np.nan], np.float32)


def nearest(x: float, dtype: type, bits: int) -> int:
    """The code whose value is nearest to x, ties to the even code, saturating."""
    codes = np.arange(1 << bits - 1, dtype=np.uint8)
    values = codes.view(dtype).astype(np.float64)
    codes, values = codes[np.isfinite(values)], values[np.isfinite(values)]
    away = np.abs(values - min(abs(x), values.max()))
    best = codes[away == away.min()]
    code = int(best[best % 2 == 0][0] if len(best) > 1 else best[0])
    return code | (1 << bits - 1 if math.copysign(1, x) < 0 else 0)


@pytest.mark.parametrize("name", NARROW)
def test_to_narrow_floats(name: str) -> None:
    dtype, _, nan, container = NARROW[name]
    bits = {"e4m3": 8, "e5m2": 8, "e3m2": 6, "e2m3": 6, "e2m1": 4}[name]
    words = {"a": VALUES.view(np.uint32), "b": np.roll(VALUES, 1).view(np.uint32)}
    if container == 4:
        got = run("{ .reg .b8 t; cvt.rn.satfinite.e2m1x2.f32 t, %a, %b; cvt.u16.u8 %d, t; }", words, {"d": "b16"})["d"]
    else:
        got = run(f"cvt.rn.satfinite.{name}x2.f32 %d, %a, %b;", words, {"d": "b16"})["d"]
    expected = np.array([nan if math.isnan(x) else nearest(x, dtype, bits) for x in VALUES.tolist()])
    assert np.array_equal(got >> container, expected)
    assert np.array_equal(got & (1 << container) - 1, np.roll(expected, 1))


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_from_narrow_floats(name: str, half: str) -> None:
    dtype, _, _, container = NARROW[name]
    bits = {"e4m3": 8, "e5m2": 8, "e3m2": 6, "e2m3": 6, "e2m1": 4}[name]
    codes = np.arange(1 << bits, dtype=np.uint8)
    a = np.resize(codes.astype(np.uint16) << container | np.roll(codes, 1), -(-len(codes) // 32) * 32).astype(np.uint16)
    if container == 4:
        body = f"{{ .reg .b8 t; cvt.u8.u16 t, %a; cvt.rn.{half}x2.e2m1x2 %d, t; }}"
    else:
        body = f"cvt.rn.{half}x2.{name}x2 %d, %a;"
    got = run(body, {"a": a}, {"d": "b32"}, block=len(a))["d"][: len(codes)]
    to = np.float16 if half == "f16" else ml_dtypes.bfloat16
    expected = codes.view(dtype).astype(np.float32).astype(to)
    assert np.array_equal((got >> 16).astype(np.uint16).view(to), expected, equal_nan=True)
    assert np.array_equal((got & 0xFFFF).astype(np.uint16).view(to), np.roll(expected, 1), equal_nan=True)


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_halves_to_e4m3_round_once(half: str) -> None:
    to = np.float16 if half == "f16" else ml_dtypes.bfloat16
    x = np.random.default_rng(0).normal(0, 30, 64).astype(to)
    got = run(f"cvt.rn.satfinite.e4m3x2.{half}x2 %d, %a;", {"a": x.view(np.uint32)}, {"d": "b16"})["d"].view(np.uint8)
    assert got.tolist() == [nearest(float(v), ml_dtypes.float8_e4m3fn, 8) for v in x]


def test_scales_are_powers_of_two() -> None:
    x = np.array([0, 1e-40, 2.0**-127, 1.5 * 2.0**-127, 2.0**-126, 1, 1.0000001, 1.5, 2, -3, 2.0**127, 3e38, np.inf,
                  -np.inf, np.nan, 6] * 2, np.float32)
    zero = np.zeros(32, np.uint32)
    got = run("""cvt.rp.satfinite.ue8m0x2.f32 %up, %b, %a; cvt.rz.satfinite.ue8m0x2.f32 %down, %b, %a;
        cvt.rp.ue8m0x2.f32 %open, %b, %a; cvt.rn.bf16x2.ue8m0x2 %value, %up;""",
              {"a": x.view(np.uint32), "b": zero}, {"up": "b16", "down": "b16", "open": "b16", "value": "b32"})
    assert (got["up"][:16]).tolist() == [0, 0, 0, 1, 1, 127, 128, 128, 128, 129, 254, 254, 254, 254, 255, 130]
    assert (got["down"][:16]).tolist() == [0, 0, 0, 0, 1, 127, 127, 127, 128, 128, 254, 254, 254, 254, 255, 129]
    assert (got["open"][:16]).tolist() == [0, 0, 0, 1, 1, 127, 128, 128, 128, 129, 254, 255, 255, 255, 255, 130]
    low = (got["value"] & 0xFFFF).astype(np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)[:14]
    assert np.array_equal(low, 2.0 ** (got["up"][:14].astype(float) - 127))


def test_generic_addresses_come_back() -> None:
    a = np.arange(32, dtype=np.uint64)
    body = ".reg .b64 %g; cvta.shared.u64 %g, %a; cvta.to.shared.u64 %d, %g;"
    assert np.array_equal(run(body, {"a": a}, {"d": "b64"})["d"], a)


def test_tf32_rounds_ties_away_and_keeps_nan() -> None:
    words = np.array([0x3F801000, 0x3F800FFF, 0xBF801000, 0x7F800000, 0x7FFFFFFF, 0xFFC00000, 0x7F801000, 0] * 4,
                     np.uint32)
    got = run("cvt.rna.tf32.f32 %d, %a;", {"a": words}, {"d": "b32"})["d"][:8]
    nan = 0x7FFFFFFF
    assert got.tolist() == [0x3F802000, 0x3F800000, 0xBF802000, 0x7F800000, nan, nan, nan, 0]
