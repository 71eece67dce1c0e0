"""Formats against the gguf package, bit for bit, and encoders against their own round trip."""
from __future__ import annotations

import tracemalloc
from typing import Any

import gguf
import numpy as np
import pytest

from blackwell_infer.errors import CheckpointError
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.blocks import CHUNK
from blackwell_infer.quant.encode import ENCODERS, encode

BLOCKS = ["q8_0", "q4_0", "q4_k", "q5_k", "q6_k"]
HALVES = {"q8_0": (0,), "q4_0": (0,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}


def kind(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def random_bytes(name: str, rows: int, blocks: int, *, finite: bool) -> np.ndarray[Any, Any]:
    """uint8 [rows, bytes]: every bit random; `finite` keeps the scales below infinity."""
    form = FORMATS[name]
    data = np.random.default_rng(7).integers(0, 256, (rows * blocks, form.block_bytes), np.uint8)
    if finite:
        for at in HALVES[name]:
            data[:, at + 1] &= 0xBB
    return data.reshape(rows, -1)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_keys_are_names(name: str) -> None:
    assert FORMATS[name].name == name


@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_dequantize_equals_gguf_bit_for_bit(name: str, finite: bool) -> None:
    form = FORMATS[name]
    assert (form.block, form.block_bytes) == gguf.GGML_QUANT_SIZES[kind(name)]
    data = random_bytes(name, 37, 3, finite=finite)
    w = form.read(data.reshape(-1), (37, 3 * form.block))
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, kind(name)).reshape(w.shape)
    got = form.dequantize(w)
    assert got.dtype == np.float32
    assert np.array_equal(np.isnan(got), np.isnan(expected)) and (finite is not np.isnan(got).any())
    some = ~np.isnan(expected)
    assert np.array_equal(got[some].view(np.uint32), expected[some].view(np.uint32))


@pytest.mark.parametrize("name", BLOCKS)
def test_chunks_change_nothing_and_bound_memory(name: str) -> None:
    form = FORMATS[name]
    cols = 16 * 256
    rows = 3 * CHUNK // cols + 5
    one = random_bytes(name, 64, cols // form.block, finite=True)
    data = np.resize(one, (rows, one.shape[1]))
    w = form.read(data.reshape(-1), (rows, cols))
    tracemalloc.start()
    whole = form.dequantize(w)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole.nbytes + 32 * CHUNK
    last = form.dequantize(form.take_rows(w, np.arange(rows - 7, rows)))
    assert np.array_equal(whole[-7:], last)


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_are_independent(name: str) -> None:
    form = FORMATS[name]
    w = form.read(random_bytes(name, 12, 2, finite=True).reshape(-1), (12, 2 * form.block))
    order = np.random.default_rng(1).permutation(12)
    assert np.array_equal(form.dequantize(form.take_rows(w, order)), form.dequantize(w)[order])
    both = form.concat((form.take_rows(w, order[:5]), form.take_rows(w, order[5:])))
    assert both.shape == w.shape
    assert np.array_equal(form.dequantize(both), form.dequantize(w)[order])
    assert w.nbytes == 12 * 2 * form.block_bytes


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_dense_views_unaligned_bytes(name: str) -> None:
    form = FORMATS[name]
    values = np.random.default_rng(3).standard_normal((5, 7)).astype(form.read(b_empty(), (0, 7)).parts[0].dtype)
    raw = np.concatenate([np.zeros(1, np.uint8), values.view(np.uint8).reshape(-1)])[1:]
    w = form.read(raw, (5, 7))
    assert np.shares_memory(np.asarray(w.parts[0]), raw)
    assert np.array_equal(form.dequantize(w), values.astype(np.float32))
    assert np.array_equal(form.dequantize(form.take_rows(w, np.array([4, 0]))), values.astype(np.float32)[[4, 0]])
    assert np.array_equal(form.dequantize(form.concat((w, w))), np.concatenate([values, values]).astype(np.float32))


def b_empty() -> np.ndarray[Any, Any]:
    return np.zeros(0, np.uint8)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_misshapen_bytes_are_refused(name: str) -> None:
    form = FORMATS[name]
    with pytest.raises(CheckpointError, match=name):
        form.read(np.zeros(form.block_bytes * 2 - 1, np.uint8), (2, form.block))
    if form.block > 1:
        with pytest.raises(CheckpointError, match="multiple"):
            form.read(np.zeros(form.block_bytes, np.uint8), (1, form.block + 1))


def samples(block: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(11)
    x = (rng.standard_normal((64, 2 * block)) * rng.uniform(1e-3, 2, (64, 1))).astype(np.float32)
    x[0] = 0
    x[1] = -np.abs(x[1])
    x[2] = np.abs(x[2])
    x[3, :] = 0.25
    x[4, ::2] = 0
    return x


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_encoders_equal_ggml_reference(name: str) -> None:
    x = samples(32)
    assert np.array_equal(encode(x, name).parts[0], gguf.quants.quantize(x, kind(name)))


@pytest.mark.parametrize("name", BLOCKS)
def test_encoders_come_close(name: str) -> None:
    error = {"q8_0": 0.006, "q4_0": 0.11, "q4_k": 0.09, "q5_k": 0.045, "q6_k": 0.025}[name]
    x = samples(FORMATS[name].block)
    back = FORMATS[name].dequantize(encode(x, name))
    assert np.array_equal(back[0], x[0])
    norm = np.sqrt(((back - x) ** 2).sum() / (x ** 2).sum())
    assert norm < error


def test_encoders_refuse_odd_columns() -> None:
    with pytest.raises(ValueError, match="multiple"):
        encode(np.zeros((2, 33), np.float32), "q8_0")
    assert set(ENCODERS) == set(BLOCKS)
