"""The reference of quantised activations against definitions, ml_dtypes, and float64."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackwell_infer.errors import KernelError
from blackwell_infer.ops import inputs, ref
from blackwell_infer.ops.ref.quantize import dequantize, e2m1
from blackwell_infer.quant.format import PAIRED, Quantized, input_scale
from blackwell_infer.quant.packed import E2M1
from blackwell_infer.quant.tiled import from_tiles, paired, tiled_size, to_tiles, unpaired

FORMS = ("nvfp4", "mxfp8", "fp8", "fp8_block")


def test_e2m1_takes_the_nearest_code_and_the_even_one_of_two() -> None:
    halves = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    x = np.concatenate([np.linspace(-8, 8, 4097), halves, [-0.0, 1e30]]).astype(np.float32)
    want = np.clip(x, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    assert np.array_equal(e2m1(x), want)
    assert np.array_equal(e2m1(E2M1), np.arange(16))


@given(st.integers(1, 300), st.integers(1, 40))
def test_tiles_put_every_scale_where_the_layout_says(rows: int, groups: int) -> None:
    scales = np.random.default_rng(rows).integers(0, 256, (rows, groups)).astype(np.uint8)
    tiles = to_tiles(scales)
    r, c = np.indices(scales.shape)
    at = (r // 128 * -(-groups // 4) + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4
    assert tiles.size == tiled_size(rows, groups) and np.array_equal(tiles[at], scales)
    assert np.array_equal(from_tiles(tiles, rows, groups), scales) and tiles.sum(dtype=int) == scales.sum(dtype=int)


@pytest.mark.parametrize("form", ["nvfp4", "mxfp8", "fp8"])
def test_a_tiled_weight_comes_back(form: str) -> None:
    w = inputs.weight(np.random.default_rng(1), form, 130, 192)
    back = unpaired(paired(w))
    assert back.format == form and all(np.array_equal(a, b) for a, b in zip(back.parts, w.parts, strict=True))


@pytest.mark.parametrize(("form", "error"), [("nvfp4", 0.13), ("mxfp8", 0.04), ("fp8", 0.04), ("fp8_block", 0.04)])
def test_errors_are_those_of_the_format(form: str, error: float) -> None:
    x = np.random.default_rng(2).standard_normal((40, 256)).astype(np.float32)
    back = dequantize(ref.quantize(x, form))
    assert np.sqrt(np.square(back - x).mean()) < error and np.abs(back - x).max() < 6 * error
    assert (np.sign(back) * np.sign(x) >= 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_exact_in_the_format_comes_back_as_it_was(form: str) -> None:
    rng = np.random.default_rng(3)
    codes = rng.choice(np.asarray([0, 0.5, 1, 1.5, 2, 3, 4]), (9, 256)) * rng.choice((-1.0, 1.0), (9, 256))
    codes[:, ::16] = 6 if form == "nvfp4" else 7
    x = (codes * (1 if form == "fp8" else np.exp2(rng.integers(-3, 4, (9, 1))))).astype(np.float32)
    assert np.array_equal(dequantize(ref.quantize(x, form)), x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_numbers_spoil_their_row_alone(form: str, value: float) -> None:
    x = np.random.default_rng(4).standard_normal((5, 128)).astype(np.float32)
    x[2, 70] = value
    w = (paired(inputs.weight(np.random.default_rng(5), form, 24, 128)),)
    y = np.asarray(ref.linear_quantized(ref.quantize(x, form), w, "float32"))
    assert np.isnan(y[2]).all() and np.isfinite(np.delete(y, 2, axis=0)).all()


@pytest.mark.parametrize("form", FORMS)
def test_tiny_zero_and_huge_rows(form: str) -> None:
    x = np.zeros((4, 128), np.float32)
    x[1], x[2], x[3] = 1e-44, 3e38, -0.0
    back = dequantize(ref.quantize(x, form))
    assert np.isfinite(back).all() and not back[[0, 1, 3]].any()
    assert (back[2] == 2688 if form == "nvfp4" else np.abs(back[2] / 3e38 - 1) < 0.07).all()


def test_the_recorded_scale_is_used_where_it_is_positive() -> None:
    x = np.random.default_rng(6).standard_normal((3, 64)).astype(np.float32)

    def parts(form: str, scale: float | None) -> list[Any]:
        recorded = None if scale is None else np.full(1, scale, np.float32)
        return [np.asarray(p).tolist() for p in ref.quantize(x, form, recorded).parts]
    assert parts("nvfp4", 0.0) == parts("nvfp4", None) == parts("nvfp4", -1.0)
    assert parts("nvfp4", 2.0**-8)[2] == [2.0**-8] and parts("fp8", 0.25)[1] == [0.25] * 3


def test_a_product_is_that_of_the_dequantised() -> None:
    rng = np.random.default_rng(7)
    for form in FORMS:
        x = ref.quantize(inputs.activations(rng, (20, 128), "float32"), form)
        w = inputs.weight(rng, form, 24, 128)
        bias, residual = rng.standard_normal(24).astype(np.float32), inputs.activations(rng, (20, 24), "float16")
        from blackwell_infer.quant import FORMATS
        want = dequantize(x).astype(np.float64) @ FORMATS[form].dequantize(w).T.astype(np.float64) + bias + residual
        got = np.asarray(ref.linear_quantized(x, (paired(w),), "float16", bias, residual))
        assert got.dtype == np.float16 and np.abs(got - want).max() < 4e-3


def test_misfits_are_refused() -> None:
    x = np.zeros((1, 96), np.float32)
    for form in ("nvfp4", "int3"):
        with pytest.raises(KernelError, match=form):
            ref.quantize(x, form)
    with pytest.raises(KernelError, match="no fused kernel quantises to fp8"):
        ref.swiglu_quantize(x, "fp8")
    q = ref.quantize(x, "mxfp8")
    with pytest.raises(KernelError, match="mxfp8 activations go with mxfp8_tiled weights, not nvfp4"):
        ref.linear_quantized(Quantized(q.format, q.shape, q.parts),
                             (inputs.weight(np.random.default_rng(8), "nvfp4", 8, 96),), "float32")


@pytest.mark.parametrize("form", PAIRED)
def test_a_linear_quantises_what_meets_a_paired_weight(form: str) -> None:
    rng = np.random.default_rng(9)
    w, plain = inputs.weight(rng, PAIRED[form], 24, 128), inputs.weight(rng, "f32", 7, 128)
    if form in ("nvfp4", "fp8"):
        recorded = np.asarray(input_scale(w))
        assert recorded.shape == (1,)
        recorded[:] = 0.01                       # a part of the weight: what it records counts
    x, bias = inputs.activations(rng, (5, 128), "float16"), rng.standard_normal(31).astype(np.float32)
    got = np.asarray(ref.linear(x, (plain, w), bias))
    lossy = ref.linear_quantized(ref.quantize(x, form, input_scale(w)), (w,), "float16", bias[7:])
    assert got[:, :7].tobytes() == np.asarray(ref.linear(x, (plain,), bias[:7])).tobytes()
    assert got[:, 7:].tobytes() == np.asarray(lossy).tobytes()
    assert got[:, 7:].tobytes() != np.asarray(ref.linear(x, (unpaired(w),), bias[7:])).tobytes()


@pytest.mark.parametrize(("form", "cols"), [("nvfp4", 96), ("fp8", 72), ("fp8_block", 72), ("mxfp4", 64), ("bf16", 64)])
def test_a_weight_that_does_not_fit_stays_as_it_is(form: str, cols: int) -> None:
    w = inputs.weight(np.random.default_rng(1), form, 3, cols)
    assert paired(w) is w and unpaired(w) is w
