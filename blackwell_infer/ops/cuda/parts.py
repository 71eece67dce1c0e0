"""The parts of a weight as kernels take them: codes or blocks, scales, factors per row."""
from __future__ import annotations

from blackwell_infer.kernels.kernel import Param
from blackwell_infer.quant.format import Weight
from blackwell_infer.types import Array

SCALES = {"nvfp4": 1, "nvfp4_f16": 1, "mxfp4": 1, "mxfp8": 1, "fp8_block": 1}
FACTORS = {"nvfp4": 2, "nvfp4_f16": 2, "fp8": 1}
"""Which part of a weight holds its scales, and its factors per row; other formats have one part."""

WEIGHT = (Param("w", "in"), Param("scales", "in"), Param("factors", "in", "float32"))


def pointers(w: Weight) -> tuple[Array, Array | None, Array | None]:
    """The arguments `WEIGHT` of a kernel: codes or blocks, scales, factors per row."""
    scales, factors = SCALES.get(w.format), FACTORS.get(w.format)
    return (w.parts[0], None if scales is None else w.parts[scales], None if factors is None else w.parts[factors])
