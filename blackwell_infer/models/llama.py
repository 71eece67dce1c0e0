"""Llama 2 and 3.x, and Mistral: the dense decoder as it is; Mistral adds a sliding window."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blackwell_infer.models import layers
from blackwell_infer.models.spec import Family


def llama_config(config: Mapping[str, Any]) -> layers.DenseConfig:
    c = layers.read_config(config)
    return layers.dense_config(c, (0,) * c.num_hidden_layers, biases=True)


def mistral_config(config: Mapping[str, Any]) -> layers.DenseConfig:
    """`sliding_window` holds for every layer unless `layer_types` says which."""
    c = layers.read_config(config)
    window = c.sliding_window or 0
    kind = layers.SLIDING if window else layers.FULL
    return layers.dense_config(c, layers.layer_windows(c, window, (kind,) * c.num_hidden_layers))


LLAMA = Family(
    name="llama", architectures=("LlamaForCausalLM",), config=llama_config, geometry=layers.geometry,
    build=layers.build, forward=layers.forward, logits=layers.logits)

MISTRAL = Family(
    name="mistral", architectures=("MistralForCausalLM",), config=mistral_config, geometry=layers.geometry,
    build=layers.build, forward=layers.forward, logits=layers.logits)
