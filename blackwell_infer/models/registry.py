"""Which model families exist, and which one a configuration asks for."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.models.llama import LLAMA, MISTRAL
from blackwell_infer.models.mixtral import MIXTRAL
from blackwell_infer.models.qwen3 import QWEN3, QWEN3_MOE
from blackwell_infer.models.qwen3_5 import QWEN3_5, QWEN3_5_MOE
from blackwell_infer.models.spec import Family

FAMILIES: tuple[Family, ...] = (LLAMA, MISTRAL, MIXTRAL, QWEN3, QWEN3_MOE, QWEN3_5, QWEN3_5_MOE)
QUANTISED = ("modelopt", "compressed-tensors", "fp8", "mxfp4", "lynn_native")
"""Kinds of quantised releases whose tensors the checkpoint readers know."""


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of `architectures[0]`, or of `model_type` where a configuration names no architecture.

    UnsupportedModelError names what was asked for and what is supported, for architectures and for quantised releases.
    """
    architectures = config.get("architectures") or []
    if not isinstance(architectures, (list, tuple)) or not all(isinstance(a, str) for a in architectures):
        raise CheckpointError(f"config field architectures must be a list of names, not {architectures!r}")
    asked, kind = architectures[0] if architectures else None, config.get("model_type")
    if asked is None and not isinstance(kind, str):
        raise CheckpointError("config field architectures is missing, and so is model_type: nothing says what this is")
    quantised = config.get("quantization_config")
    for family in FAMILIES:
        if asked in family.architectures or (asked is None and kind == family.name):
            method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
            if quantised is not None and method not in QUANTISED:
                raise UnsupportedModelError(f"quantization_config of kind {method!r} is not supported; supported are "
                                            f"{', '.join(QUANTISED)}. Take another release or a GGUF of this model")
            return family
    known = ", ".join(f"{a} (model_type {f.name})" for f in FAMILIES for a in f.architectures)
    raise UnsupportedModelError(f"architecture {asked or kind} is not supported; supported are {known}")
