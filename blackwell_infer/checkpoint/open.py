"""Opens whatever a path holds: a GGUF file (or any part of one), or a folder."""
from __future__ import annotations

from pathlib import Path

from blackwell_infer.checkpoint.gguf import open_gguf, part_paths
from blackwell_infer.checkpoint.hf import open_folder
from blackwell_infer.checkpoint.reader import Checkpoint
from blackwell_infer.errors import CheckpointError


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a .gguf file, a Hugging Face folder, or a folder that holds one GGUF model.

    Memory-mapped: only headers are read. CheckpointError says what is wrong, in which file, and what to do;
    UnsupportedModelError names a tensor type that cannot be read.
    """
    if path.is_dir():
        if (path / "config.json").is_file():
            return open_folder(path)
        models = sorted({part_paths(file)[0] for file in path.glob("*.gguf")})
        if len(models) > 1:
            raise CheckpointError(f"{path}: holds several models, name one: {', '.join(m.name for m in models[:8])}")
        return open_gguf(models[0]) if models else open_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: give the folder that holds this file and its config.json")
    return open_gguf(path)
