"""A GGUF model, in one file or split over several, in Hugging Face spelling."""
from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from blackwell_infer.checkpoint.gguf_file import GGUFFile, StoredTensor, read_gguf
from blackwell_infer.checkpoint.mapped import shorten
from blackwell_infer.checkpoint.names import Source, translate
from blackwell_infer.checkpoint.reader import TensorInfo
from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.quant import FORMATS, Weight
from blackwell_infer.quant.format import layout_bytes

SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MOST_PARTS = 1000


class GGUFCheckpoint:
    """An open GGUF model (see `reader.Checkpoint`). Weights are views of the mapped files; permuted rows are copies."""

    def __init__(self, path: Path, files: tuple[GGUFFile, ...]) -> None:
        self.path = path
        self.metadata: Mapping[str, Any] = files[0].metadata
        self._stored: dict[str, tuple[GGUFFile, StoredTensor]] = {}
        for file in files:
            for tensor in file.tensors.values():
                if tensor.name in self._stored:
                    first = self._stored[tensor.name][0].path.name
                    raise CheckpointError(f"{file.path}: tensor {shorten(tensor.name)} is in {first} as well")
                self._stored[tensor.name] = (file, tensor)
        beside = {name for name in self._stored if _matrix_of(name) in self._stored}
        shapes = {name: tensor.shape for name, (_, tensor) in self._stored.items() if name not in beside}
        translation = translate(path, self.metadata, shapes)
        self.config = translation.config
        self.generation = translation.generation
        self._sources = translation.sources
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {name: self._info(name, source) for name, source in translation.sources.items()}
        )

    def _info(self, name: str, source: Source) -> TensorInfo:
        file, tensor = self._stored[source.name]
        if source.known and tensor.kind not in FORMATS:
            raise self._unsupported(source.name)
        if source.known:
            self._scales(source.name)
        nbytes = (tensor.nbytes or 0) // tensor.shape[0] * (source.stop - source.start)
        if tensor.kind == "nvfp4":
            nbytes = layout_bytes(FORMATS[tensor.kind].layout((math.prod(source.shape[:-1]), source.shape[-1])))
        return TensorInfo(name, source.shape, tensor.kind if tensor.kind in FORMATS else "", nbytes, str(file.path))

    def _unsupported(self, stored: str) -> UnsupportedModelError:
        file, tensor = self._stored[stored]
        return UnsupportedModelError(
            f"{file.path}: tensor {shorten(stored)} is stored as {tensor.kind}; supported are {', '.join(FORMATS)}. "
            "Take another quantisation of this model"
        )

    def _scales(self, stored: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Factor and scale of inputs (0: none) of a matrix, [1], or of each of a stack, from the tensors beside it.

        CheckpointError: misshapen, or no scale; UnsupportedModelError: beside a type that has no factor.
        """
        matrix = self._stored[stored][1]
        count = matrix.shape[0] if len(matrix.shape) == 3 else 1
        out = []
        for suffix, default in (("scale", 1), ("input_scale", 0)):
            name = f"{stored.removesuffix('weight')}{suffix}"
            values = np.full(count, default, np.float32)
            if stored.endswith(".weight") and name in self._stored and len(matrix.shape) > 1:
                holder, tensor = self._stored[name]
                if tensor.kind != "f32" or tensor.shape not in ((1,), (count,)):
                    expected = "[1]" if count == 1 else f"[{count}] or [1]"
                    what = f"is {tensor.kind} {list(tensor.shape)}, expected f32 {expected} beside {shorten(stored)}"
                    raise CheckpointError(f"{holder.path}: tensor {shorten(name)} {what}; convert the model again")
                values = np.broadcast_to(holder.bytes_of(tensor).view("<f4"), count)
                wrong = values[~((values >= 0) & (values < np.inf))]
                if len(wrong):
                    raise CheckpointError(f"{holder.path}: tensor {shorten(name)} is {wrong[0]}, no scale; "
                                          "convert the model again")
                if matrix.kind != "nvfp4" and suffix == "scale" and (values != 1).any():
                    raise UnsupportedModelError(f"{holder.path}: tensor {shorten(name)} scales {shorten(stored)} of "
                                                f"type {matrix.kind}; that is only supported for nvfp4")
            out.append(values)
        return out[0], out[1]

    def weight(self, name: str) -> Weight:
        """See `reader.Checkpoint.weight`. UnsupportedModelError for a type without a format."""
        if not self._stored:
            raise CheckpointError(f"{self.path}: is closed, or holds no tensors")
        if name not in self._sources:
            raise CheckpointError(f"{self.path}: has no tensor {shorten(name)}; the file does not fit its architecture")
        source = self._sources[name]
        file, tensor = self._stored[source.name]
        if tensor.kind not in FORMATS:
            raise self._unsupported(source.name)
        form = FORMATS[tensor.kind]
        if len(tensor.shape) > 3:
            dims = len(tensor.shape)
            raise CheckpointError(f"{file.path}: tensor {shorten(source.name)} has {dims} dimensions, not 1, 2 or 3")
        if len(tensor.shape) == 1:
            return self._vector(name, source, form.read(file.bytes_of(tensor), (1, tensor.shape[0])))
        try:
            w = form.read(file.bytes_of(tensor), (math.prod(tensor.shape[:-1]), tensor.shape[-1]))
        except CheckpointError as error:
            raise CheckpointError(f"{file.path}: tensor {shorten(source.name)}: {error}; convert it again") from error
        if tensor.kind == "nvfp4":
            factor, inputs = self._scales(source.name)
            factors = np.repeat(factor, w.shape[0] // len(factor)).astype(np.float32)
            w = Weight(w.format, w.shape, (*w.parts[:2], factors, inputs.max(keepdims=True)))
        if len(tensor.shape) == 3:
            return w
        rows = source.stop - source.start
        if rows < w.shape[0] and len(w.parts) > 1:
            w = form.take_rows(w, np.arange(source.start, source.stop))
        elif rows < w.shape[0]:
            w = Weight(w.format, (rows, w.shape[1]), (w.parts[0][source.start:source.stop],))
        return form.take_rows(w, unpermuted(rows, source.heads)) if source.heads else w

    def _vector(self, name: str, source: Source, w: Weight) -> Weight:
        """The slice of a [1, n] weight that `source` describes; slicing along blocks makes no sense."""
        if not source.heads and source.stop - source.start == w.shape[1]:
            return w
        if FORMATS[w.format].block > 1:
            raise CheckpointError(f"{self.path}: tensor {shorten(name)} is a vector stored as {w.format}; expected f32")
        data = np.asarray(w.parts[0])[:, source.start:source.stop]
        if source.heads:
            data = data[:, unpermuted(data.shape[1], source.heads)]
        return Weight(w.format, (1, data.shape[1]), (data,))

    def close(self) -> None:
        """Let go of the mappings. Weights that are still referenced stay readable."""
        self._stored = {}
        self._sources = {}


def _matrix_of(name: str) -> str:
    """The stored name of the matrix that `name` is a scale of, "" if it is no scale."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.weight" if suffix in ("scale", "input_scale") else ""


def unpermuted(rows: int, heads: int) -> np.ndarray[Any, Any]:
    """Stored row of every Hugging Face row [rows]: per head the file has [d/2, 2], Hugging Face [2, d/2]."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def part_paths(path: Path) -> tuple[Path, ...]:
    """All files of the model that `path` belongs to: itself, or every part of `name-0000I-of-0000N.gguf`."""
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= MOST_PARTS:
        raise CheckpointError(f"{path}: part {int(match['number'])} of {count} makes no sense; rename the file")
    return tuple(path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1))


def open_gguf(path: Path) -> GGUFCheckpoint:
    """Open a GGUF model; any part of a split one will do. CheckpointError names a missing or foreign part."""
    paths = part_paths(path)
    for part in paths:
        if len(paths) > 1 and not part.is_file():
            raise CheckpointError(f"{part}: this part of a model in {len(paths)} files is missing; download it too")
    files = tuple(read_gguf(part) for part in paths)
    total = sum(len(file.tensors) for file in files)
    for index, file in enumerate(files):
        count = file.metadata.get("split.count", 1) or 1
        if count != len(files) or file.metadata.get("split.no", 0) != index:
            raise CheckpointError(
                f"{file.path}: says it is part {file.metadata.get('split.no', 0)!r} (from 0) of {count!r}, "
                f"its name says {index} of {len(files)}; keep the names name-00001-of-0000N.gguf"
            )
        if file.metadata.get("split.tensors.count", total) != total:
            wanted = file.metadata["split.tensors.count"]
            raise CheckpointError(f"{file.path}: the parts hold {total} tensors, not {wanted!r}; download them again")
    return GGUFCheckpoint(path, files)
