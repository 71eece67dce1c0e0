"""The trained model as a Hugging Face folder, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .model import DemoModel
from .shape import Shape, config, generation_config

FILE = "model.safetensors"


def save(folder: Path, shape: Shape, weights: Mapping[str, Tensor], ids: Mapping[str, int]) -> None:
    """Matrices in bfloat16, vectors in float32; `ids` are those of the added tokens. lm_head is the embedding."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: w.detach().to("cpu", torch.bfloat16 if w.ndim > 1 else torch.float32).contiguous()
        for name, w in weights.items()
    }
    part = folder / (FILE + ".part")
    save_file(tensors, part, metadata={"format": "pt"})
    part.replace(folder / FILE)
    for name, value in (
        ("config.json", config(shape, dict(ids))),
        ("generation_config.json", generation_config(dict(ids))),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, shape: Shape, dtype: torch.dtype = torch.float32) -> DemoModel:
    from safetensors.torch import load_file

    model = DemoModel(shape, dtype)
    model.load_state_dict(load_file(folder / FILE))
    return model.eval()
