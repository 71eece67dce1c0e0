"""Opens whatever a path holds: a GGUF file (or any part of one), or a folder."""
from __future__ import annotations

from pathlib import Path

from blackwell_infer.checkpoint.gguf import open_gguf, part_paths
from blackwell_infer.checkpoint.head import named_as_head, with_found_head, with_head
from blackwell_infer.checkpoint.hf import open_folder
from blackwell_infer.checkpoint.reader import Checkpoint
from blackwell_infer.errors import CheckpointError


def open_checkpoint(path: Path, head: str = "") -> Checkpoint:
    """Open a .gguf file, a Hugging Face folder, or a folder that holds one GGUF model.

    The head for multi-token prediction may lie in a file of its own: that of the path `head`, else the one in the
    model's folder that is named so. Memory-mapped: only headers are read. CheckpointError says what is wrong, in which
    file, and what to do; UnsupportedModelError names a tensor type that cannot be read.
    """
    if path.is_dir():
        return open_any(path, head)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: give the folder that holds this file and its config.json")
    return headed(open_gguf(path), head)


def open_any(path: Path, head: str) -> Checkpoint:
    """Open a folder."""
    files = sorted(path.glob("*.gguf"))
    if (path / "config.json").is_file() or not files:
        model = open_folder(path)
        return headed(model, head) if head else with_found_head(model, sorted(path.glob("*.safetensors")))
    heads = set(named_as_head(file.name for file in files))
    models = sorted({part_paths(file)[0] for file in files if file.name not in heads or len(heads) == len(files)})
    if len(models) > 1:
        raise CheckpointError(f"{path}: holds several models, name one: {', '.join(m.name for m in models[:8])}")
    found = sorted(heads - {models[0].name})
    if len(found) > 1 and not head:
        raise CheckpointError(f"{path}: holds several heads for multi-token prediction, name one with mtp_file: "
                              f"{', '.join(found[:8])}")
    return headed(open_gguf(models[0]), head or (str(path / found[0]) if found else ""))


def headed(model: Checkpoint, head: str) -> Checkpoint:
    """The model, with the head of another file if there is one."""
    return with_head(model, Path(head).expanduser()) if head else model
