"""How weights are stored. `FORMATS` is the one list of what can be read; adding a format is one file and one line."""
from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from blackwell_infer.quant.dense import BF16, F16, F32
from blackwell_infer.quant.format import Format, Linear, Weight
from blackwell_infer.quant.fp8 import FP8, FP8_BLOCK
from blackwell_infer.quant.gguf_k import Q4_K, Q5_K, Q6_K
from blackwell_infer.quant.gguf_legacy import Q4_0, Q8_0
from blackwell_infer.quant.mxfp4 import MXFP4, MXFP8
from blackwell_infer.quant.nvfp4 import NVFP4, NVFP4_F16

FORMATS: Mapping[str, Format] = MappingProxyType({
    "f32": F32, "f16": F16, "bf16": BF16,
    "q8_0": Q8_0, "q4_0": Q4_0,
    "q4_k": Q4_K, "q5_k": Q5_K, "q6_k": Q6_K,
    "nvfp4": NVFP4, "nvfp4_f16": NVFP4_F16, "mxfp4": MXFP4, "mxfp8": MXFP8, "fp8": FP8, "fp8_block": FP8_BLOCK,
})

__all__ = ["FORMATS", "Format", "Linear", "Weight"]
