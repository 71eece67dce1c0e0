"""What NVFP4 makes of weights, in torch: the values that blackwell_infer.quant.encode_fp stores."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP, LARGEST_E2M1, LARGEST_E4M3 = 16, 6.0, 448.0
QUANTISED = (
    "in_proj_qkv",
    "in_proj_z",
    "out_proj",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "gate_up_proj",
)


def is_quantised(name: str) -> bool:
    return any(part in QUANTISED for part in name.split("."))


def round_e2m1(x: Tensor) -> Tensor:
    """Nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 in magnitude, ties to the even code."""
    size = x.abs().clamp(max=LARGEST_E2M1)
    fine, middle, coarse = (2 * size).round() / 2, size.round(), 2 * (size / 2).round()
    return torch.where(size < 2, fine, torch.where(size < 4, middle, coarse)).copysign(x)


def as_nvfp4(w: Tensor) -> Tensor:
    """w [..., rows, K] through NVFP4 and back; every matrix has a factor of its own, as has every block of 16."""
    x = w.float()
    blocks = x.unflatten(-1, (-1, GROUP))
    peak = blocks.abs().amax(-1, keepdim=True)  # [..., rows, K / 16, 1]
    factor = peak.amax((-3, -2, -1), keepdim=True) / (LARGEST_E2M1 * LARGEST_E4M3)
    scale = (peak / LARGEST_E2M1 / factor.clamp_min(1e-30)).clamp(max=LARGEST_E4M3).to(
        torch.float8_e4m3fn
    ).float() * factor
    codes = torch.where(scale > 0, round_e2m1(blocks / scale.clamp_min(1e-30)), 0.0)
    return (codes * scale).flatten(-2)


def stored(name: str, w: Tensor) -> Tensor:
    """A parameter as the NVFP4 checkpoint holds it: gate and up of an expert are matrices of their own."""
    if not is_quantised(name):
        return w
    x = w.to(torch.bfloat16)
    if name.endswith("gate_up_proj"):
        return as_nvfp4(x.unflatten(1, (2, -1))).flatten(1, 2)
    return as_nvfp4(x)
