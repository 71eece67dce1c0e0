"""Mixtral: Mistral's attention, and experts in every layer whose weights always add up to 1."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from blackwell_infer.models import layers
from blackwell_infer.models.llama import mistral_config
from blackwell_infer.models.moe import moe_config, read_moe
from blackwell_infer.models.spec import Family


def mixtral_config(config: Mapping[str, Any]) -> layers.DenseConfig:
    """An expert is as wide as `intermediate_size`, unless `moe_intermediate_size` says otherwise (GGUF)."""
    c, fields = mistral_config(config), read_moe(config)
    inner = fields.moe_intermediate_size or c.inner
    return msgspec.structs.replace(c, moe=moe_config(fields, len(c.windows), inner, norm=True))


MIXTRAL = Family(
    name="mixtral", architectures=("MixtralForCausalLM",), config=mixtral_config, geometry=layers.geometry,
    build=layers.build, forward=layers.forward, logits=layers.logits)
