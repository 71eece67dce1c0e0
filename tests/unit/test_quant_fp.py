"""NVFP4, MXFP4, MXFP8 and FP8 against loops over single elements, the gguf package, and a search for nearest codes."""
from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise
from typing import Any

import gguf
import numpy as np
import pytest

from blackwell_infer.errors import CheckpointError
from blackwell_infer.quant import FORMATS, Weight, mxfp4, nvfp4
from blackwell_infer.quant.encode_fp import ENCODERS, encode_fp, to_e2m1, to_e4m3, to_e8m0
from blackwell_infer.quant.format import layout_bytes
from blackwell_infer.quant.packed import CHUNK, halves_to_pairs, pairs_to_halves

Array = np.ndarray[Any, Any]
NAMES = ["nvfp4", "nvfp4_f16", "mxfp4", "mxfp8", "fp8", "fp8_block"]


def e2m1(code: int) -> float:
    """Sign, two exponent bits (bias 1), one mantissa bit."""
    exponent, mantissa = code >> 1 & 3, code & 1
    value = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -value if code & 8 else value


def e4m3(code: int) -> float:
    """Sign, four exponent bits (bias 7), three mantissa bits; all ones is NaN."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 0x7F == 0x7F:
        return math.nan
    value = mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -value if code & 128 else value


def e8m0(code: int) -> float:
    return math.nan if code == 255 else 2.0 ** (code - 127)


def slow(w: Weight) -> Array:
    """Every element by itself in double precision, rounded to single once."""
    parts = [np.asarray(part) for part in w.parts]
    out = np.empty(w.shape)
    for n in range(w.shape[0]):
        for k in range(w.shape[1]):
            if w.format in ("nvfp4", "nvfp4_f16", "mxfp4"):
                value = e2m1(int(parts[0][n, k // 2]) >> 4 * (k % 2) & 15)
            else:
                value = e4m3(int(parts[0][n, k]))
            if w.format == "nvfp4":
                value *= e4m3(int(parts[1][n, k // 16])) * float(parts[2][n])
            elif w.format == "nvfp4_f16":
                value *= float(parts[1][n, k // 16]) * float(parts[2][n])
            elif w.format in ("mxfp4", "mxfp8"):
                value *= e8m0(int(parts[1][n, k // 32]))
            elif w.format == "fp8":
                value *= float(parts[1][n])
            else:
                value *= float(parts[1][n // 128, k // 128])
            out[n, k] = value
    with np.errstate(over="ignore", invalid="ignore"):
        return out.astype(np.float32)


def random_weight(name: str, rows: int, cols: int, seed: int = 5) -> Weight:
    """Random bits in every code and scale byte; unsigned E4M3 scales."""
    rng = np.random.default_rng(seed)
    parts = []
    for i, (shape, dtype) in enumerate(FORMATS[name].layout((rows, cols))):
        if dtype == np.uint8:
            top = 128 if name == "nvfp4" and i == 1 else 256
            parts.append(rng.integers(0, top, shape).astype(np.uint8))
        else:
            parts.append(rng.uniform(1e-3, 2, shape).astype(dtype))
    return Weight(name, (rows, cols), tuple(parts))


def same_bits(a: Array, b: Array) -> None:
    assert a.dtype == b.dtype == np.float32
    assert np.array_equal(np.isnan(a), np.isnan(b))
    some = ~np.isnan(a)
    assert np.array_equal(a[some].view(np.uint32), b[some].view(np.uint32))


@pytest.mark.parametrize("name", NAMES)
def test_dequantize_is_the_product_of_its_parts(name: str) -> None:
    w = random_weight(name, 37, 192)
    got = FORMATS[name].dequantize(w)
    same_bits(got, slow(w))
    assert np.isfinite(got).mean() > 0.9


def test_every_code_and_scale() -> None:
    scales = np.arange(256, dtype=np.uint8)
    codes = np.tile(np.arange(256, dtype=np.uint8)[:16], (256, 1))
    for name, group in (("mxfp4", 32), ("mxfp8", 32)):
        width = group // 2 if name == "mxfp4" else group
        w = Weight(name, (256, group), (np.resize(codes, (256, width)) * np.uint8(17), scales[:, None]))
        same_bits(FORMATS[name].dequantize(w), slow(w))
    w = Weight("fp8", (1, 256), (scales[None], np.ones(1, np.float32), np.zeros(1, np.float32)))
    same_bits(FORMATS["fp8"].dequantize(w), np.array([[e4m3(c) for c in range(256)]], np.float32))


@pytest.mark.parametrize(("name", "cols"), [("nvfp4", 192), ("mxfp4", 96)])
def test_gguf_blocks_mean_what_the_gguf_package_says(name: str, cols: int) -> None:
    kind = gguf.GGMLQuantizationType[name.upper()]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(2).integers(0, 256, (41 * cols // block, size), np.uint8)
    if name == "nvfp4":
        data[:, :4] &= 0x7F                     # scales are unsigned; 0x7F is 0 there
        data[0, :4] = 0x7F, 0, 1, 0x7E
    else:
        data[:, 0] = np.minimum(data[:, 0], 254)
        data[:3, 0] = 0, 1, 254
    kept = data.copy()
    if name == "nvfp4":
        kept[:, :4][kept[:, :4] == 0x7F] = 0
    data = data.reshape(41, -1)
    w = FORMATS[name].read(data.reshape(-1), (41, cols))
    with np.errstate(over="ignore"):
        expected = gguf.quants.dequantize(data, kind).reshape(41, cols).astype(np.float32)
    zero = np.float32(0)                        # that package has no negative zero: -0 + 0 is 0
    same_bits(FORMATS[name].dequantize(w) + zero, expected + zero)
    back = {"nvfp4": nvfp4.gguf_blocks, "mxfp4": mxfp4.gguf_blocks}[name](w)
    assert np.array_equal(back, kept.reshape(41, -1))


def test_negative_gguf_scales_are_refused() -> None:
    data = np.zeros(72, np.uint8)
    data[37] = 0x80
    with pytest.raises(CheckpointError, match="negative scales"):
        FORMATS["nvfp4"].read(data, (2, 64))
    with pytest.raises(CheckpointError, match="GGUF blocks of 64"):
        nvfp4.gguf_blocks(encode_fp(np.ones((1, 16), np.float32), "nvfp4"))


def test_nibble_orders_are_inverse() -> None:
    packed = np.random.default_rng(1).integers(0, 256, (5, 3, 8), np.uint8)
    assert np.array_equal(pairs_to_halves(halves_to_pairs(packed)), packed)
    elements = np.concatenate((packed & 15, packed >> 4), axis=-1)
    pairs = halves_to_pairs(packed)
    assert np.array_equal(np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(5, 3, 16), elements)


@pytest.mark.parametrize("name", NAMES)
def test_layout_and_raw_bytes(name: str) -> None:
    form = FORMATS[name]
    w = random_weight(name, 6, 128)
    assert tuple((np.asarray(p).shape, np.asarray(p).dtype) for p in w.parts) == form.layout((6, 128))
    assert w.nbytes == layout_bytes(form.layout((6, 128)))
    if name not in ("nvfp4", "mxfp4"):          # those two read GGUF blocks
        raw = np.concatenate([np.asarray(p).view(np.uint8).reshape(-1) for p in w.parts])
        again = form.read(np.concatenate((raw[:1], raw))[1:], (6, 128))
        same_bits(form.dequantize(again), form.dequantize(w))
    with pytest.raises(CheckpointError, match=rf"\[6, 128\] {name} matrix has parts"):
        form.pack((6, 128), *w.parts[:-1])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_independent(name: str) -> None:
    form = FORMATS[name]
    w = random_weight(name, 300, 192)
    whole = form.dequantize(w)
    order = np.r_[128:256, 0:128] if name == "fp8_block" else np.random.default_rng(1).permutation(300)
    taken = form.take_rows(w, order)
    same_bits(form.dequantize(taken), whole[order])
    both = form.concat((taken, form.take_rows(w, np.arange(256, 300))))
    assert both.shape == (len(order) + 44, 192) and form.joins(((128, 192), (128, 192), (44, 192)))
    same_bits(form.dequantize(both), np.concatenate((whole[order], whole[256:])))


def test_the_largest_input_scale_survives_joining() -> None:
    a, b = random_weight("nvfp4", 3, 32, 1), random_weight("nvfp4", 5, 32, 2)
    both = FORMATS["nvfp4"].concat((a, b))
    assert np.array_equal(both.parts[3], np.maximum(np.asarray(a.parts[3]), np.asarray(b.parts[3])))
    assert np.array_equal(both.parts[2], np.concatenate((a.parts[2], b.parts[2])))  # type: ignore[arg-type]


def test_blocks_of_128_rows_stay_whole() -> None:
    form = FORMATS["fp8_block"]
    w = random_weight("fp8_block", 300, 100)
    for rows in ([5, 6], [0, 1, 2], list(range(1, 129)), list(range(256, 300)) + list(range(128))):
        with pytest.raises(CheckpointError, match="whole blocks of 128"):
            form.take_rows(w, np.array(rows))
    assert form.take_rows(w, np.arange(0)).shape == (0, 100)
    assert not form.joins(((300, 100), (128, 100)))
    with pytest.raises(CheckpointError, match="300, 300 rows do not join"):
        form.concat((w, w))


@pytest.mark.parametrize("name", NAMES)
def test_chunks_change_nothing_and_bound_memory(name: str) -> None:
    form = FORMATS[name]
    cols = 4096
    w = random_weight(name, 2 * CHUNK // cols + 5, cols)
    tracemalloc.start()
    whole = form.dequantize(w)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole.nbytes + 32 * CHUNK
    rows = np.arange(512, len(whole))
    same_bits(whole[512:], form.dequantize(form.take_rows(w, rows)))


def nearest(x: float, values: list[float]) -> float:
    """The nearest of `values` (ascending, those of codes 0, 1, ...); ties go to the even code, the rest to the last."""
    x = min(abs(x), values[-1])
    best = min(range(len(values)), key=lambda i: (abs(values[i] - x), i % 2))
    return values[best]


@pytest.mark.parametrize(("decode", "count"), [(e2m1, 8), (e4m3, 127)])
def test_codes_are_nearest_with_ties_to_even(decode: Any, count: int) -> None:
    values = [decode(c) for c in range(count)]
    middles = [(a + b) / 2 for a, b in pairwise(values)]
    near = [m * f for m in middles for f in (1, 1 - 1e-6, 1 + 1e-6)]
    x = np.array([*values, *near, values[-1] * 1.5, 1e30], np.float32)
    x = np.concatenate((x, -x))[: 2 * (len(x) // 2 * 2)]
    codes = to_e2m1(x[None])[0] if count == 8 else to_e4m3(x)
    if count == 8:
        codes = np.stack((codes & 15, codes >> 4), axis=1).reshape(-1)
    got = [decode(int(c)) for c in codes]
    assert [abs(g) for g in got] == [nearest(float(v), values) for v in x]
    assert all(g == 0 or (g < 0) == (v < 0) for g, v in zip(got, x, strict=True))


def test_mx_scales_are_floors_of_the_logarithm() -> None:
    peak = np.array([0, 1e-45, 2.0**-126, 0.99999994, 1, 1.5, 2, 6, 448, 3e38], np.float32)
    for exponent in (2, 8):
        wanted = [0 if p == 0 else min(max(math.frexp(float(p))[1] - 1 - exponent + 127, 0), 254) for p in peak]
        assert to_e8m0(peak, exponent).tolist() == wanted


def samples(rows: int = 200, cols: int = 256) -> Array:
    rng = np.random.default_rng(11)
    x = (rng.standard_normal((rows, cols)) * rng.uniform(0.2, 2, (rows, 1))).astype(np.float32)
    x[0] = 0
    x[1, ::2] = 0
    x[2, :64] = 0
    return x


ERRORS = {"nvfp4": 0.1, "nvfp4_f16": 0.1, "mxfp4": 0.13, "mxfp8": 0.032, "fp8": 0.03, "fp8_channel": 0.03,
          "fp8_block": 0.03}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_come_close(name: str) -> None:
    x = samples()
    w = encode_fp(x, name)
    back = FORMATS[w.format].dequantize(w)
    assert w.shape == x.shape and np.array_equal(back[0], x[0])
    error = np.sqrt(((back - x) ** 2).sum() / (x**2).sum())
    assert ERRORS[name] / 2.5 < error < ERRORS[name]
    assert not FORMATS[w.format].dequantize(encode_fp(np.zeros((3, 64)), name)).any()


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp8", "fp8", "fp8_block"])
def test_values_of_a_format_survive_it(name: str) -> None:
    """Encoding what a format can say says it again; other scales than powers of two may come out an ulp away."""
    w = encode_fp(samples(), name)
    once = FORMATS[w.format].dequantize(w)
    again = FORMATS[w.format].dequantize(encode_fp(once, name))
    assert np.abs(once - again).max() <= (0 if name.startswith("mx") else 1e-6 * np.abs(once).max())


def test_nvfp4_scales_are_modelopts() -> None:
    x = samples()
    w = encode_fp(x, "nvfp4")
    factor = np.float32(np.abs(x).max()) / np.float32(6 * 448)
    assert np.asarray(w.parts[2]).tolist() == [factor] * len(x) and not np.asarray(w.parts[3]).any()
    for n, b in ((5, 0), (7, 3), (199, 15)):
        peak = np.abs(x[n, 16 * b : 16 * b + 16]).max()
        values = [e4m3(c) for c in range(127)]
        assert e4m3(int(np.asarray(w.parts[1])[n, b])) == nearest(float(peak / np.float32(6) / factor), values)


@pytest.mark.parametrize("name", ["nvfp4", "nvfp4_f16", "mxfp4", "mxfp8"])
def test_odd_columns_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="multiple"):
        encode_fp(np.zeros((2, FORMATS[name].block + 1)), name)
    with pytest.raises(CheckpointError, match="multiple"):
        FORMATS[name].pack((2, FORMATS[name].block + 1))  # type: ignore[attr-defined]
