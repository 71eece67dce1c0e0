"""A head for multi-token prediction that lies in a file of its own, beside the model or somewhere else.

Published so far: `mtp.safetensors` or `model_mtp.safetensors` in a Hugging Face folder, with tensors `mtp.*` that the
index does not list; and `mtp-NAME.gguf`, the metadata of the whole model with the blocks behind the last layer only.
What else such a file holds (a second copy of the embeddings) is left out.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from blackwell_infer.checkpoint.gguf import open_gguf
from blackwell_infer.checkpoint.hf import open_files
from blackwell_infer.checkpoint.mapped import shorten
from blackwell_infer.checkpoint.quantized import settings_of
from blackwell_infer.checkpoint.reader import Checkpoint, TensorInfo
from blackwell_infer.errors import CheckpointError
from blackwell_infer.log import logger
from blackwell_infer.quant import Weight

PREFIX = "mtp."
"""What the Hugging Face names of a head's tensors begin with"""
SAME = ("model_type", "hidden_size", "vocab_size", "num_hidden_layers")
"""What a head that brings a configuration must have in common with the model"""
_NAME = re.compile(r"(.+[-_.])?mtp([-_.].*)?\.safetensors", re.IGNORECASE)
_GGUF = re.compile(r"mtp[-_].+\.gguf", re.IGNORECASE)


def named_as_head(names: Iterable[str]) -> list[str]:
    """Those file names that say they hold a head."""
    return sorted(name for name in names if _NAME.fullmatch(name) or _GGUF.fullmatch(name))


class HeadedCheckpoint:
    """A model with the head of another file (see `reader.Checkpoint`)."""

    def __init__(self, model: Checkpoint, head: Checkpoint) -> None:
        self.path = model.path
        self.config = model.config
        self.generation = model.generation
        self.metadata: Mapping[str, Any] = model.metadata
        self._model = model
        self._head = head
        self._own = heads_tensors(head)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(model.tensors) | self._own)

    def weight(self, name: str) -> Weight:
        """See `reader.Checkpoint.weight`."""
        return (self._head if name in self._own else self._model).weight(name)

    def close(self) -> None:
        self._model.close()
        self._head.close()


def heads_tensors(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint's head."""
    return {name: info for name, info in checkpoint.tensors.items() if name.startswith(PREFIX)}


def with_head(model: Checkpoint, path: Path) -> Checkpoint:
    """The model with the head of a file. CheckpointError: no head in there, one of another model or container, or a
    second one."""
    if path.suffix != ".safetensors":
        return joined(model, open_gguf(path))
    return joined(model, open_files([path], settings_of(model.config, {})))


def with_found_head(model: Checkpoint, files: list[Path]) -> Checkpoint:
    """The model of a Hugging Face folder with the head of those of the folder's `files` that are named so and that
    nothing else lists."""
    used = {info.file for info in model.tensors.values()}
    names = set(named_as_head(file.name for file in files))
    found = [file for file in files if file.name in names and file.suffix == ".safetensors" and str(file) not in used]
    if not found:
        return model
    head = open_files(found, settings_of(model.config, {}))
    if not heads_tensors(head):
        logger.warning("%s holds no tensors %s*, so it is left out", found[0], PREFIX)
        head.close()
        return model
    return joined(model, head)


def joined(model: Checkpoint, head: Checkpoint) -> HeadedCheckpoint:
    """Both in one, checked as far as names and settings say."""
    try:
        own = heads_tensors(head)
        if not own:
            raise CheckpointError(f"{head.path}: holds no tensors of a head for multi-token prediction ({PREFIX}* in "
                                  "safetensors, blocks behind the last layer in GGUF); take another file")
        twice = sorted(own.keys() & model.tensors.keys())
        if twice:
            raise CheckpointError(f"{head.path}: tensor {shorten(twice[0])} is in {model.tensors[twice[0]].file} as "
                                  "well: the model brings a head of its own; take one of the two away")
        if bool(head.metadata) != bool(model.metadata):
            kinds = ("safetensors", "GGUF")
            raise CheckpointError(f"{head.path}: is {kinds[bool(head.metadata)]}, the model {model.path} is "
                                  f"{kinds[bool(model.metadata)]}: they store norms differently; take a head of the "
                                  "model's kind")
        for name in SAME:
            if name in head.config and head.config[name] != model.config.get(name):
                raise CheckpointError(f"{head.path}: {name} is {head.config[name]}, that of {model.path} is "
                                      f"{model.config.get(name)}: the head belongs to another model")
    except CheckpointError:
        head.close()
        raise
    return HeadedCheckpoint(model, head)
