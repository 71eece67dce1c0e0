"""Qwen3 dense: RMS norms of every query and key head before rotation, and windows on the upper layers if asked for."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blackwell_infer.models import layers
from blackwell_infer.models.spec import Family


def qwen3_config(config: Mapping[str, Any]) -> layers.DenseConfig:
    """The window counts only with `use_sliding_window`; without `layer_types` it starts at `max_window_layers`."""
    c = layers.read_config(config)
    window = (c.sliding_window or 0) if c.use_sliding_window else 0
    first = c.num_hidden_layers if c.max_window_layers is None or not window else c.max_window_layers
    kinds = tuple(layers.SLIDING if i >= first else layers.FULL for i in range(c.num_hidden_layers))
    return layers.dense_config(c, layers.layer_windows(c, window, kinds), biases=True, qk_norm=True)


QWEN3 = Family(
    name="qwen3", architectures=("Qwen3ForCausalLM",), config=qwen3_config, geometry=layers.geometry,
    build=layers.build, forward=layers.forward, logits=layers.logits)
