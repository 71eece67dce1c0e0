"""What a checkpoint is to the rest of the engine, whatever its container. Memory-mapped: opening reads only headers."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from blackwell_infer.errors import CheckpointError, TemplateError, TokenizerError
from blackwell_infer.quant.format import Weight


class TensorInfo(msgspec.Struct, frozen=True, gc=False):
    """A stored tensor under its Hugging Face name. `shape` is NumPy order; `format` a key of `quant.FORMATS`."""

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    file: str


class Checkpoint(Protocol):
    """An open model: Hugging Face spelling everywhere, GGUF transforms already undone by the readers."""

    path: Path
    config: Mapping[str, Any]
    """config.json, or its equivalent built from GGUF metadata (`architectures`, `hidden_size`, ...)"""
    generation: Mapping[str, Any]
    """generation_config.json or {}: eos_token_id, temperature, top_p ..."""
    metadata: Mapping[str, Any]
    """raw GGUF key-value pairs (tokenizer.ggml.*, general.*), decoded on access; {} for Hugging Face folders"""
    tensors: Mapping[str, TensorInfo]

    def weight(self, name: str) -> Weight:
        """A matrix, a vector [n] as [1, n], or a stack of matrices [e, n, k] as [e n, k]; parts are views of the mapped
        file (row permutations copy)."""
        ...

    def close(self) -> None: ...


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Puts the path of a model in front of errors about its content that do not name it."""
    try:
        yield
    except (CheckpointError, TokenizerError, TemplateError) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
