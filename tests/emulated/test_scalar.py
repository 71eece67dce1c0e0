"""Integer and floating-point instructions against Python's big integers and exact fractions."""
from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from emulated.snippet import run
from hypothesis import given, settings
from hypothesis import strategies as st

WORD = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 31, 32, 2**31 - 1, 2**31, 2**32 - 1]))
LONG = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 63, 64, 2**63 - 1, 2**63, 2**64 - 1]))
BITS = st.integers(0, 2**32 - 1)
FAST = settings(max_examples=30, deadline=None)


def lanes(values: list[int], bits: int) -> np.ndarray:
    return np.array((values * 32)[:32], np.dtype(f"u{bits // 8}"))


def signed(x: int, bits: int) -> int:
    return x - (1 << bits) if x >> bits - 1 else x


def one(form: str, sources: list[tuple[int, int]], out: str) -> int:
    """Result of lane 0 for (value, bits) sources."""
    inputs = {f"s{i}": lanes([v], b) for i, (v, b) in enumerate(sources)}
    body = f"{form} %d, " + ", ".join(f"%s{i}" for i in range(len(sources))) + ";"
    return int(run(body, inputs, {"d": out})["d"].view(np.dtype(f"u{8 if out == 'b64' else 4}"))[0])


def float_bits(x: float) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]


def bits_float(b: int) -> float:
    return struct.unpack("<f", struct.pack("<I", b))[0]


def divide(a: int, b: int, bits: int) -> int:
    if b == 0:
        return -1
    q = abs(a) // abs(b)
    return -q if (a < 0) != (b < 0) else q


SEMANTICS = {
    "add.s32": lambda a, b: a + b, "sub.u32": lambda a, b: a - b, "mul.lo.s32": lambda a, b: a * b,
    "mul.hi.u32": lambda a, b: a * b >> 32, "and.b32": lambda a, b: a & b, "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b, "min.u32": min, "max.u32": max,
    "div.u32": lambda a, b: divide(a, b, 32), "rem.u32": lambda a, b: a if b == 0 else a % b,
}


@FAST
@given(a=WORD, b=WORD)
@pytest.mark.parametrize("form", SEMANTICS)
def test_unsigned_words(form: str, a: int, b: int) -> None:
    assert one(form, [(a, 32), (b, 32)], "b32") == SEMANTICS[form](a, b) % 2**32


@FAST
@given(a=WORD, b=WORD)
def test_signed_words(a: int, b: int) -> None:
    x, y = signed(a, 32), signed(b, 32)
    for form, expected in (("mul.hi.s32", x * y >> 32), ("min.s32", min(x, y)), ("max.s32", max(x, y)),
                           ("div.s32", divide(x, y, 32)), ("rem.s32", x if y == 0 else x - divide(x, y, 32) * y)):
        assert one(form, [(a, 32), (b, 32)], "b32") == expected % 2**32, form
    assert one("mul.wide.s32", [(a, 32), (b, 32)], "b64") == x * y % 2**64
    assert one("mul.wide.u32", [(a, 32), (b, 32)], "b64") == a * b
    assert one("abs.s32", [(a, 32)], "b32") == abs(x) % 2**32
    assert one("neg.s32", [(a, 32)], "b32") == -x % 2**32


@FAST
@given(a=LONG, b=LONG, c=LONG)
def test_long_words(a: int, b: int, c: int) -> None:
    for form, expected in (("add.u64", a + b), ("mul.lo.u64", a * b), ("mul.hi.u64", a * b >> 64),
                           ("mul.hi.s64", signed(a, 64) * signed(b, 64) >> 64)):
        assert one(form, [(a, 64), (b, 64)], "b64") == expected % 2**64, form
    assert one("mad.lo.s64", [(a, 64), (b, 64), (c, 64)], "b64") == (a * b + c) % 2**64


@FAST
@given(a=WORD, n=st.one_of(st.integers(0, 70), WORD))
def test_shifts_clamp_at_the_width(a: int, n: int) -> None:
    assert one("shl.b32", [(a, 32), (n, 32)], "b32") == (a << n if n < 32 else 0) % 2**32
    assert one("shr.u32", [(a, 32), (n, 32)], "b32") == (a >> n if n < 32 else 0)
    assert one("shr.s32", [(a, 32), (n, 32)], "b32") == (signed(a, 32) >> min(n, 31)) % 2**32
    assert one("shl.b64", [(a, 64), (n, 32)], "b64") == (a << n if n < 64 else 0) % 2**64


@FAST
@given(low=WORD, high=WORD, n=WORD)
def test_funnel_shifts_wrap(low: int, high: int, n: int) -> None:
    both = high << 32 | low
    assert one("shf.l.wrap.b32", [(low, 32), (high, 32), (n, 32)], "b32") == (both << n % 32 >> 32) % 2**32
    assert one("shf.r.wrap.b32", [(low, 32), (high, 32), (n, 32)], "b32") == (both >> n % 32) % 2**32


@FAST
@given(a=WORD, b=WORD, start=st.integers(0, 80), length=st.integers(0, 80))
def test_bit_fields(a: int, b: int, start: int, length: int) -> None:
    sources = [(a, 32), (start, 32), (length, 32)]
    n = min(length, max(0, 32 - start))
    field = a >> start & (1 << n) - 1
    assert one("bfe.u32", sources, "b32") == field
    sign = a >> min(start + length - 1, 31) & 1 if length else 0
    assert one("bfe.s32", sources, "b32") == (field - (sign << n)) % 2**32
    mask = ((1 << min(length, 32)) - 1) << start & 2**32 - 1 if start < 32 else 0
    assert one("bfi.b32", [(b, 32), *sources], "b32") == a & ~mask | b << start & mask


@FAST
@given(a=WORD, b=WORD, selector=WORD)
def test_permute_bytes(a: int, b: int, selector: int) -> None:
    both, out = (b << 32 | a).to_bytes(8, "little"), 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = both[nibble & 7]
        out |= (255 * (byte >> 7) if nibble & 8 else byte) << 8 * i
    assert one("prmt.b32", [(a, 32), (b, 32), (selector, 32)], "b32") == out


@FAST
@given(a=WORD, b=WORD, c=WORD, table=st.integers(0, 255))
def test_three_input_logic(a: int, b: int, c: int, table: int) -> None:
    expected = sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i for i in range(32))
    got = run(f"lop3.b32 %d, %a, %b, %c, {table};", {"a": lanes([a], 32), "b": lanes([b], 32), "c": lanes([c], 32)},
              {"d": "b32"})
    assert got["d"][0] == expected


@FAST
@given(a=LONG)
def test_counting_bits(a: int) -> None:
    assert one("popc.b64", [(a, 64)], "b32") == a.bit_count()
    assert one("clz.b64", [(a, 64)], "b32") == 64 - a.bit_length()
    assert one("bfind.u64", [(a, 64)], "b32") == (a.bit_length() - 1) % 2**32
    assert one("brev.b64", [(a, 64)], "b64") == int(f"{a:064b}"[::-1], 2)


# -- floating point ---------------------------------------------------------------------------------------------------


def exact_round(x: Fraction) -> float:
    """A fraction to float32, nearest even, with overflow to infinity."""
    if x == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(x))) - 24, -150)
    while abs(x) >= Fraction(2) ** (exponent + 24):
        exponent += 1
    while exponent > -149 and abs(x) < Fraction(2) ** (exponent + 23):
        exponent -= 1
    exponent = max(exponent, -149)
    scaled = round(x / Fraction(2) ** exponent)                             # round() of a Fraction is to nearest even
    value = Fraction(scaled) * Fraction(2) ** exponent
    return math.copysign(math.inf, x) if abs(value) >= Fraction(2) ** 128 else float(value)


FINITE = BITS.filter(lambda b: b >> 23 & 255 != 255)


@settings(max_examples=120, deadline=None)
@given(a=FINITE, b=FINITE, c=FINITE, near=st.booleans())
def test_fma_rounds_once(a: int, b: int, c: int, near: bool) -> None:
    x, y, z = (Fraction(bits_float(v)) for v in (a, b, c))
    if near and x * y:                                                      # cancellation: c close to -a * b
        z = -Fraction(exact_round(x * y)) if abs(exact_round(x * y)) < math.inf else z
        c = float_bits(float(z))
    expected = exact_round(x * y + z)
    got = bits_float(one("fma.rn.f32", [(a, 32), (b, 32), (c, 32)], "b32"))
    assert got == expected


@FAST
@given(a=BITS, b=BITS)
def test_minimum_and_maximum_of_nan(a: int, b: int) -> None:
    x, y = bits_float(a), bits_float(b)
    for form, pick in (("min", min), ("max", max)):
        plain, strict = (bits_float(one(f"{form}{nan}.f32", [(a, 32), (b, 32)], "b32")) for nan in ("", ".NaN"))
        if math.isnan(x) or math.isnan(y):
            assert math.isnan(strict)
            rest = [v for v in (x, y) if not math.isnan(v)]
            assert plain == rest[0] if rest else math.isnan(plain)
        else:
            assert plain == strict == pick(x, y)


COMPARISONS = {"eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
               "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b}


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_and_nan(name: str) -> None:
    values = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]
    pairs = [(a, b) for a in values for b in values]
    a, b = (np.array([p[i] for p in pairs], np.float32).view(np.uint32) for i in range(2))
    n = len(pairs)
    pad = -(-n // 32) * 32
    a, b = np.resize(a, pad), np.resize(b, pad)
    got = run(f"setp.{name}.f32 %p, %a, %b; setp.{name}u.f32 %q, %a, %b;", {"a": a, "b": b}, {"p": "pred", "q": "pred"},
              block=pad)
    for i, (x, y) in enumerate(pairs):
        nan = math.isnan(x) or math.isnan(y)
        assert got["p"][i] == (not nan and COMPARISONS[name](x, y))
        assert got["q"][i] == (nan or COMPARISONS[name](x, y))


APPROXIMATIONS = [("ex2.approx.f32", np.exp2, (-120, 120)), ("lg2.approx.f32", np.log2, (1e-20, 1e20)),
                  ("rcp.approx.f32", np.reciprocal, (1e-20, 1e20)), ("sqrt.approx.f32", np.sqrt, (0, 1e20)),
                  ("rsqrt.approx.f32", lambda x: 1 / np.sqrt(x), (1e-20, 1e20)), ("sin.approx.f32", np.sin, (-3, 3)),
                  ("cos.approx.f32", np.cos, (-3, 3)), ("tanh.approx.f32", np.tanh, (-4, 4))]


@pytest.mark.parametrize(("form", "function", "span"), APPROXIMATIONS)
def test_approximations_are_the_nearest_float(form: str, function: object, span: tuple[float, float]) -> None:
    x = np.random.default_rng(0).uniform(*span, 256).astype(np.float32)
    got = run(f"{form} %d, %a;", {"a": x.view(np.uint32)}, {"d": "f32"}, block=256)["d"]
    assert np.array_equal(got, function(x.astype(np.float64)).astype(np.float32))


def test_flush_to_zero_touches_sources_and_results() -> None:
    tiny = np.array([1e-40, -1e-40, 2e-38] * 11, np.float32)[:32].view(np.uint32)
    half = np.full(32, 0.25, np.float32).view(np.uint32)
    got = run("mul.ftz.f32 %d, %a, %b; mul.f32 %e, %a, %b;", {"a": tiny, "b": half}, {"d": "f32", "e": "f32"})
    assert (got["d"][:3] == 0).all() and np.signbit(got["d"][1])
    assert (got["e"][:3] != 0).all()


def test_packed_halves_round_once_each() -> None:
    rng = np.random.default_rng(3)
    a, b, c = (rng.standard_normal((32, 2)).astype(np.float16) for _ in range(3))
    words = {n: v.view(np.uint32).reshape(-1) for n, v in (("a", a), ("b", b), ("c", c))}
    got = run("fma.rn.f16x2 %d, %a, %b, %c; mul.f16x2 %e, %a, %b;", words, {"d": "b32", "e": "b32"})
    exact = a.astype(np.float64) * b.astype(np.float64)
    assert np.array_equal(got["d"].view(np.float16).reshape(32, 2), (exact + c).astype(np.float16))
    assert np.array_equal(got["e"].view(np.float16).reshape(32, 2), exact.astype(np.float16))
