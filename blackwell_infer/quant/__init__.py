"""How weights are stored. `FORMATS` is the one list of what can be read; adding a format is one file and one line."""
from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from blackwell_infer.quant.dense import BF16, F16, F32
from blackwell_infer.quant.format import Format, Linear, Weight
from blackwell_infer.quant.gguf_k import Q4_K, Q5_K, Q6_K
from blackwell_infer.quant.gguf_legacy import Q4_0, Q8_0

FORMATS: Mapping[str, Format] = MappingProxyType({
    "f32": F32, "f16": F16, "bf16": BF16,
    "q8_0": Q8_0, "q4_0": Q4_0,
    "q4_k": Q4_K, "q5_k": Q5_K, "q6_k": Q6_K,
})

__all__ = ["FORMATS", "Format", "Linear", "Weight"]
