"""float32 -> NVFP4, MXFP4, MXFP8 and FP8, for tools and tests. The engine itself never re-encodes a user's weights.

Codes are rounded to the nearest, ties to even; values beyond the largest code become the largest. NVFP4 scales are
those of ModelOpt: factor = max|matrix| / (6 * 448), scale = e4m3(max|block| / 6 / factor). MX scales are those of OCP
Microscaling Formats 1.0, section 6.3: 2^(floor(log2 max|block|) - exponent of the largest code).
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import ml_dtypes
import numpy as np

from blackwell_infer.quant.format import Weight
from blackwell_infer.quant.fp8 import FP8, FP8_BLOCK, SIDE
from blackwell_infer.quant.mxfp4 import MXFP4, MXFP8
from blackwell_infer.quant.nvfp4 import NVFP4, NVFP4_F16
from blackwell_infer.quant.packed import E4M3, E8M0, Values

LARGEST_E2M1, LARGEST_E4M3 = np.float32(6), np.float32(448)
NO_INPUTS = np.zeros(1, np.float32)


def encode_fp(x: Values, name: str) -> Weight:
    """Encode finite float [rows, cols] as `name` of `ENCODERS` says; cols must be a multiple of the format's block."""
    return ENCODERS[name](np.asarray(x, np.float32))


def to_e4m3(x: Values) -> Values:
    """float32 -> E4M3 codes, uint8."""
    codes: Values = np.clip(x, -LARGEST_E4M3, LARGEST_E4M3).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return codes


def to_e2m1(x: Values) -> Values:
    """float32 [..., K] -> E2M1 codes, two per byte, low nibble first: uint8 [..., K/2]."""
    codes: Values = np.clip(x, -LARGEST_E2M1, LARGEST_E2M1).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    packed: Values = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return packed


def peaks(x: Values, group: int) -> Values:
    """Largest magnitude of every group of a row, float32 [N, K/group]. ValueError if K is no multiple."""
    if x.shape[1] % group:
        raise ValueError(f"{x.shape[1]} columns are no multiple of the {group} elements of a block")
    out: Values = np.abs(x).reshape(x.shape[0], -1, group).max(axis=2, initial=0)
    return out


def scaled(x: Values, scales: Values) -> Values:
    """x [N, K] divided by scales [N, K/group], 0 where a scale is 0."""
    blocks = x.reshape(*scales.shape, -1).astype(np.float32)
    wide = np.broadcast_to(scales[:, :, None], blocks.shape)
    out: Values = np.divide(blocks, wide, out=np.zeros_like(blocks), where=wide != 0)
    return out.reshape(x.shape)


def nvfp4_factor(peak: float) -> np.float32:
    """The factor of a matrix whose largest magnitude is `peak`; fused projections may share one."""
    return np.float32(peak) / (LARGEST_E2M1 * LARGEST_E4M3)


def encode_nvfp4(x: Values, factor: np.float32 | None = None) -> Weight:
    """NVFP4 under `factor`, or under the matrix's own."""
    peak = peaks(x, NVFP4.group)
    d = nvfp4_factor(float(peak.max(initial=0))) if factor is None else factor
    scales = to_e4m3(peak / LARGEST_E2M1 / d if d else peak)
    codes = to_e2m1(scaled(x, E4M3[scales] * d))
    return NVFP4.pack((x.shape[0], x.shape[1]), codes, scales, np.full(x.shape[0], d, np.float32), NO_INPUTS)


def encode_nvfp4_f16(x: Values) -> Weight:
    """E2M1 under float16 scales max|block| / 6, factor 1."""
    scales = (peaks(x, NVFP4_F16.group) / LARGEST_E2M1).astype("<f2")
    codes = to_e2m1(scaled(x, scales.astype(np.float32)))
    return NVFP4_F16.pack((x.shape[0], x.shape[1]), codes, scales, np.ones(x.shape[0], np.float32))


def to_e8m0(peak: Values, exponent: int) -> Values:
    """The MX scale byte of groups with these largest magnitudes; `exponent` is that of the largest code."""
    log2 = np.frexp(peak)[1] - 1                                              # floor(log2 peak), exactly
    return np.where(peak > 0, np.clip(log2 - exponent + 127, 0, 254), 0).astype(np.uint8)


def encode_mxfp4(x: Values) -> Weight:
    scales = to_e8m0(peaks(x, MXFP4.group), 2)
    return MXFP4.pack((x.shape[0], x.shape[1]), to_e2m1(scaled(x, E8M0[scales])), scales)


def encode_mxfp8(x: Values) -> Weight:
    scales = to_e8m0(peaks(x, MXFP8.group), 8)
    return MXFP8.pack((x.shape[0], x.shape[1]), to_e4m3(scaled(x, E8M0[scales])), scales)


def encode_fp8(x: Values) -> Weight:
    """FP8 under one factor per matrix, max|matrix| / 448."""
    factors = np.full(x.shape[0], np.abs(x).max(initial=0) / LARGEST_E4M3, np.float32)
    return FP8.pack((x.shape[0], x.shape[1]), to_e4m3(scaled(x, factors[:, None])), factors, NO_INPUTS)


def encode_fp8_channel(x: Values) -> Weight:
    """FP8 under one factor per row, max|row| / 448."""
    factors = (np.abs(x).max(axis=1, initial=0) / LARGEST_E4M3).astype(np.float32)
    return FP8.pack((x.shape[0], x.shape[1]), to_e4m3(scaled(x, factors[:, None])), factors, NO_INPUTS)


def encode_fp8_block(x: Values) -> Weight:
    """FP8 under one scale per block of 128 x 128, max|block| / 448."""
    rows, cols = x.shape
    high, wide = -(-rows // SIDE), -(-cols // SIDE)
    padded = np.zeros((high * SIDE, wide * SIDE), np.float32)
    padded[:rows, :cols] = np.abs(x)
    scales = padded.reshape(high, SIDE, wide, SIDE).max(axis=(1, 3), initial=0) / LARGEST_E4M3
    spread = scales.repeat(SIDE, axis=0)[:rows].repeat(SIDE, axis=1)[:, :cols]
    return FP8_BLOCK.pack((rows, cols), to_e4m3(scaled(x, spread)), scales.astype(np.float32))


ENCODERS: Mapping[str, Callable[[Values], Weight]] = MappingProxyType({
    "nvfp4": encode_nvfp4, "nvfp4_f16": encode_nvfp4_f16, "mxfp4": encode_mxfp4, "mxfp8": encode_mxfp8,
    "fp8": encode_fp8, "fp8_channel": encode_fp8_channel, "fp8_block": encode_fp8_block,
})
