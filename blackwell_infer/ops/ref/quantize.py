"""Activations in small codes under scales, and products of them: the bit-exact meaning of `ops.api`'s `quantize`.

Sources: OCP Microscaling Formats (MX) 1.0 for the codes; NVIDIA, "Introducing NVFP4" (2025) for two levels of scales.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from blackwell_infer.errors import KernelError
from blackwell_infer.ops.ref.activation import swiglu
from blackwell_infer.ops.ref.norm import add_rms_norm, rms_norm
from blackwell_infer.ops.ref.product import DTYPES, Floats, product
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import PAIRED, Linear, Quantized, Weight
from blackwell_infer.quant.packed import E2M1, E4M3, E8M0
from blackwell_infer.quant.tiled import from_tiles, to_tiles, unpaired
from blackwell_infer.types import Array

Values = np.ndarray[Any, Any]
ONE, NAN = np.float32(1), np.float32(np.nan)
LARGEST_E2M1, LARGEST_E4M3 = np.float32(6), np.float32(448)
SMALLEST = np.float32(2.0**-126)

STEPS = np.asarray([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)
"""Half-way points between the magnitudes of E2M1; a point belongs to the neighbour with the even code."""


def e2m1(x: Floats) -> Values:
    """Codes 0 to 15 of float32 values: nearest even, saturating, the sign of zero kept."""
    size = np.abs(x)
    codes = sum((size > step if i % 2 == 0 else size >= step).astype(np.uint8) for i, step in enumerate(STEPS))
    return np.asarray(codes | (np.signbit(x).astype(np.uint8) << 3), np.uint8)


def e4m3(x: Floats) -> Values:
    """Codes of float32 values: nearest even, saturating; NaN gives 0x7F."""
    codes: Values = np.clip(x, -LARGEST_E4M3, LARGEST_E4M3).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return np.where(np.isnan(x), np.uint8(0x7F), codes)


def given(inputs: Array | None) -> np.float32:
    """The recorded scale of activations, or 0."""
    value = np.float32(0) if inputs is None else np.float32(np.asarray(inputs)[0])
    return value if value > 0 else np.float32(0)


def groups(x: Floats, size: int) -> tuple[Floats, Floats, Values]:
    """x as [T, ceil(K / size), size] with zeros behind, largest magnitudes, and which groups hold NaN or infinity."""
    rows, cols = x.shape
    cut = np.pad(x, ((0, 0), (0, -cols % size))).reshape(rows, -1, size)
    largest = np.abs(cut).max(axis=2, initial=0)
    bad = ~np.isfinite(largest)
    return cut, np.where(bad, np.float32(0), largest), bad


def inverse(scale: Floats) -> Floats:
    """1 / scale; 0 for scales below the normal numbers."""
    return np.where(scale >= SMALLEST, ONE / scale, np.float32(0))


def coded(cut: Floats, factor: Floats, bad: Values) -> Floats:
    """Groups times a factor each, zeros in bad groups."""
    return np.where(bad[:, :, None], np.float32(0), cut * factor[:, :, None])


def flat(cut: Values, cols: int) -> Values:
    return np.ascontiguousarray(cut.reshape(cut.shape[0], -1)[:, :cols])


def to_nvfp4(x: Floats, inputs: Array | None) -> tuple[Values, ...]:
    fits("nvfp4", x, 64)
    g = given(inputs) or ONE
    cut, largest, bad = groups(x, 16)
    scales = np.where(bad, np.uint8(0x7F), e4m3(largest / LARGEST_E2M1 / g))
    codes = e2m1(coded(cut, inverse(np.where(bad, ONE, E4M3[scales]) * g), bad)).reshape(x.shape)
    return codes[:, 0::2] | (codes[:, 1::2] << 4), to_tiles(scales), np.full(1, g, np.float32)


def to_mxfp8(x: Floats, inputs: Array | None) -> tuple[Values, ...]:
    fits("mxfp8", x, 32)
    cut, largest, bad = groups(x, 32)
    above = (largest / LARGEST_E4M3).view(np.uint32) + np.uint32(0x7FFFFF) >> np.uint32(23)
    codes = e4m3(coded(cut, np.ldexp(ONE, 127 - above.astype(np.int32)), bad))
    return flat(codes, x.shape[1]), to_tiles(np.where(bad, np.uint8(255), above.astype(np.uint8)))


def to_fp8(x: Floats, inputs: Array | None) -> tuple[Values, ...]:
    cut, largest, bad = groups(x, max(x.shape[1], 1))
    factor = np.where(bad, NAN, given(inputs) or largest / LARGEST_E4M3).astype(np.float32)
    return flat(e4m3(coded(cut, inverse(factor), bad)), x.shape[1]), factor.reshape(-1)


def to_fp8_block(x: Floats, inputs: Array | None) -> tuple[Values, ...]:
    cut, largest, bad = groups(x, 128)
    scale = np.where(bad, NAN, largest / LARGEST_E4M3)
    return flat(e4m3(coded(cut, inverse(scale), bad)), x.shape[1]), scale


def fits(form: str, x: Floats, multiple: int) -> None:
    if x.shape[1] % multiple:
        raise KernelError(f"quantize: rows of {x.shape[1]} elements are no multiple of {multiple}, which {form} needs")


CODERS: Mapping[str, Callable[[Floats, Array | None], tuple[Values, ...]]] = MappingProxyType({
    "nvfp4": to_nvfp4, "mxfp8": to_mxfp8, "fp8": to_fp8, "fp8_block": to_fp8_block})
FUSED = ("nvfp4", "mxfp8", "fp8_block")


@np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore")
def quantize(x: Array, form: str, inputs: Array | None = None) -> Quantized:
    if form not in CODERS:
        raise KernelError(f"quantize: no form {form}; there are {', '.join(CODERS)}")
    return Quantized(form, (x.shape[0], x.shape[1]), CODERS[form](np.asarray(x, np.float32), inputs))


def fused(form: str) -> None:
    if form not in FUSED:
        raise KernelError(f"no fused kernel quantises to {form}; there are {', '.join(FUSED)}")


def rms_norm_quantize(x: Array, weight: Array, eps: float, form: str, inputs: Array | None = None) -> Quantized:
    fused(form)
    return quantize(rms_norm(x, weight, eps), form, inputs)


def add_rms_norm_quantize(x: Array, residual: Array, weight: Array, eps: float, form: str,
                          inputs: Array | None = None) -> tuple[Array, Quantized]:
    fused(form)
    s, y = add_rms_norm(x, residual, weight, eps)
    return s, quantize(y, form, inputs)


def swiglu_quantize(gate_up: Array, form: str, inputs: Array | None = None) -> Quantized:
    fused(form)
    return quantize(swiglu(gate_up), form, inputs)


@np.errstate(over="ignore", invalid="ignore", under="ignore")
def dequantize(x: Quantized) -> Floats:
    """float32 [T, K]: what the codes stand for."""
    (rows, cols), parts = x.shape, [np.asarray(part) for part in x.parts]
    if x.format == "fp8":
        return np.asarray(E4M3[parts[0]] * parts[1][:, None])
    if x.format == "fp8_block":
        return np.asarray(E4M3[parts[0]] * parts[1].repeat(128, axis=1)[:, :cols])
    if x.format == "mxfp8":
        return np.asarray(E4M3[parts[0]] * E8M0[from_tiles(parts[1], rows, cols // 32)].repeat(32, axis=1))
    codes = np.stack((E2M1[parts[0] & 15], E2M1[parts[0] >> 4]), axis=2).reshape(rows, cols)
    return np.asarray(codes * E4M3[from_tiles(parts[1], rows, cols // 16)].repeat(16, axis=1) * parts[2])


@np.errstate(over="ignore", invalid="ignore")
def linear_quantized(x: Quantized, w: Linear, dtype: str, bias: Array | None = None,
                     residual: Array | None = None) -> Array:
    values = dequantize(x)
    y = np.concatenate([product(values, matrix(x.format, block)) for block in w], axis=1)
    if bias is not None:
        y = y + np.asarray(bias)
    if residual is not None:
        y = y + np.asarray(residual, np.float32)
    return y.astype(DTYPES[dtype], copy=False)


def matrix(form: str, w: Weight) -> Floats:
    """A partner of activations in `form` as float32. KernelError: another format."""
    if w.format != PAIRED[form]:
        raise KernelError(f"linear_quantized: {form} activations go with {PAIRED[form]} weights, not {w.format}")
    plain = unpaired(w)
    return FORMATS[plain.format].dequantize(plain)

