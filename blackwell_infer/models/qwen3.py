"""Qwen3, dense and with experts: RMS norms of every query and key head before rotation, and windows on the upper
layers if asked for."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from blackwell_infer.errors import CheckpointError
from blackwell_infer.models import layers
from blackwell_infer.models.moe import moe_config, read_moe
from blackwell_infer.models.spec import Family


def qwen3_config(config: Mapping[str, Any]) -> layers.DenseConfig:
    """The window counts only with `use_sliding_window`; without `layer_types` it starts at `max_window_layers`."""
    c = layers.read_config(config)
    window = (c.sliding_window or 0) if c.use_sliding_window else 0
    first = c.num_hidden_layers if c.max_window_layers is None or not window else c.max_window_layers
    kinds = tuple(layers.SLIDING if i >= first else layers.FULL for i in range(c.num_hidden_layers))
    return layers.dense_config(c, layers.layer_windows(c, window, kinds), biases=True, qk_norm=True)


def qwen3_moe_config(config: Mapping[str, Any]) -> layers.DenseConfig:
    """Experts as wide as `moe_intermediate_size`, except in the layers that `decoder_sparse_step` and `mlp_only_layers`
    leave dense; their weights add up to 1 only with `norm_topk_prob`."""
    c, fields = qwen3_config(config), read_moe(config)
    if fields.moe_intermediate_size is None:
        raise CheckpointError("config field moe_intermediate_size is missing")
    moe = moe_config(fields, len(c.windows), fields.moe_intermediate_size, fields.norm_topk_prob)
    return msgspec.structs.replace(c, moe=moe)


QWEN3 = Family(
    name="qwen3", architectures=("Qwen3ForCausalLM",), config=qwen3_config, geometry=layers.geometry,
    build=layers.build, forward=layers.forward, logits=layers.logits)

QWEN3_MOE = Family(
    name="qwen3_moe", architectures=("Qwen3MoeForCausalLM",), config=qwen3_moe_config, geometry=layers.geometry,
    build=layers.build, forward=layers.forward, logits=layers.logits)
