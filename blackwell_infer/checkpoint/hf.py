"""A Hugging Face folder: config.json and safetensors, in one file or in shards."""
from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from blackwell_infer.checkpoint.mapped import shorten
from blackwell_infer.checkpoint.quantized import Quantized, find_quantized, read_quantized, settings_of
from blackwell_infer.checkpoint.reader import TensorInfo
from blackwell_infer.checkpoint.safetensors_file import SafetensorsFile, StoredTensor, read_safetensors
from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.quant import FORMATS, Weight

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MANIFEST = "lynn_quant_manifest.json"
DTYPES: Mapping[str, str] = MappingProxyType({"F32": "f32", "F16": "f16", "BF16": "bf16"})
"""safetensors dtype -> key of `quant.FORMATS`."""

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt")


class HuggingFaceCheckpoint:
    """An open folder (see `reader.Checkpoint`). Weights are views of the mapped files."""

    def __init__(
        self, path: Path, config: Mapping[str, Any], generation: Mapping[str, Any],
        stored: Mapping[str, tuple[SafetensorsFile, StoredTensor]], quantized: Quantized,
    ) -> None:
        self.path = path
        self.config = config
        self.generation = generation
        self.metadata: Mapping[str, Any] = MappingProxyType({})
        self._stored = stored
        self._quantized = quantized.tensors
        plain = {
            name: TensorInfo(name, t.shape, DTYPES.get(t.dtype, ""), t.end - t.begin, str(file.path))
            for name, (file, t) in stored.items() if name not in quantized.hidden
        }
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(plain | {
            name: TensorInfo(name, q.shape, q.format, q.nbytes, str(stored[q.codes][0].path))
            for name, q in quantized.tensors.items()
        })

    def weight(self, name: str) -> Weight:
        """See `reader.Checkpoint.weight`. UnsupportedModelError for a dtype without a format."""
        if not self._stored:
            raise CheckpointError(f"{self.path}: is closed, or holds no tensors")
        if name in self._quantized:
            return read_quantized(self._stored, self._quantized[name])
        if name not in self._stored:
            raise CheckpointError(f"{self.path}: has no tensor {shorten(name)}; config.json does not fit the weights")
        file, tensor = self._stored[name]
        if tensor.dtype not in DTYPES:
            raise UnsupportedModelError(
                f"{file.path}: tensor {shorten(name)} is stored as {tensor.dtype}; supported are {', '.join(DTYPES)}. "
                "Take the unquantised model, or a GGUF of it"
            )
        if len(tensor.shape) > 3:
            dims = len(tensor.shape)
            raise CheckpointError(f"{file.path}: tensor {shorten(name)} has {dims} dimensions, not 1, 2 or 3")
        cols = tensor.shape[-1] if tensor.shape else 1
        rows = math.prod(tensor.shape[:-1])
        return FORMATS[DTYPES[tensor.dtype]].read(file.bytes_of(tensor), (rows, cols))

    def close(self) -> None:
        """Let go of the mappings. Weights that are still referenced stay readable."""
        self._stored = {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder (NaN and Infinity allowed: Python's writers emit them)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no valid JSON ({str(error)[:80]}); download it again") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is no JSON object; download it again")
    return value


def open_folder(path: Path) -> HuggingFaceCheckpoint:
    """Open a Hugging Face folder. CheckpointError: no config.json, no safetensors (pickles are never read), a missing
    shard, a tensor that the index promises but no shard has."""
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: has no config.json; give a Hugging Face folder or a .gguf file")
    config = pruned(path, read_json(path / "config.json"))
    settings = settings_of(config, _optional(path / "hf_quant_config.json"))
    listed = _optional(path / MANIFEST).get("quantized_tensors")
    manifest = listed if isinstance(listed, dict) else {}
    stored = _tensors(path)
    quantized = find_quantized(path, settings, stored, manifest)
    packed = [name for name, q in quantized.tensors.items() if q.codes.endswith(".packed")]
    if manifest and packed and manifest.keys().isdisjoint(packed):
        raise CheckpointError(f"{path / MANIFEST}: lists none of the packed tensors, such as {shorten(packed[0])}; it "
                              "belongs to another model")
    return HuggingFaceCheckpoint(path, config, _optional(path / "generation_config.json"), stored, quantized)


def open_files(paths: Sequence[Path], settings: Any) -> HuggingFaceCheckpoint:
    """Safetensors files that belong to a model elsewhere, whose `quantization_config` is `settings`."""
    stored = _all_of(paths)
    return HuggingFaceCheckpoint(paths[0], {}, {}, stored, find_quantized(paths[0], settings, stored, {}))


def pruned(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """config.json with the experts that each layer has left, where a file of its own lists them (Lynn).

    CheckpointError: that file lists none, or others than config.json does."""
    file = path / "lynn_engine_variable_expert_spec.json"
    if not file.is_file():
        return config
    name = "remaining_experts_by_layer"
    counts = read_json(file).get(name)
    if not isinstance(counts, dict) or not counts:
        raise CheckpointError(f"{file}: has no {name}; it belongs to another model, or download it again")
    if config.get(name, counts) != counts:
        raise CheckpointError(f"{file}: {name} differs from that of config.json; it belongs to another model")
    return config | {name: counts}


def _optional(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder, {} if there is no such file."""
    return read_json(path) if path.is_file() else {}


def _tensors(path: Path) -> Mapping[str, tuple[SafetensorsFile, StoredTensor]]:
    if not (path / SINGLE).is_file() and (path / INDEX).is_file():
        return _indexed(path)
    paths = [path / SINGLE] if (path / SINGLE).is_file() else sorted(path.glob("*.safetensors"))
    if not paths:
        pickles = sorted(p.name for pattern in _PICKLES for p in path.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{path}: holds only pickled weights ({pickles[0]}), which are never read because they can run code; "
                "take the safetensors version, or convert them with the safetensors library"
            )
        raise CheckpointError(f"{path}: has no *.safetensors; the download is incomplete")
    for shard in paths:
        match = _SHARD.fullmatch(shard.name)
        last = min(int(match[3]), len(paths) + 1) if match else 0
        for number in range(1, last + 1):
            other = path / f"{match[1]}-{number:05d}-of-{match[3]}.safetensors" if match else shard
            if not other.is_file():
                raise CheckpointError(f"{other}: this shard is missing; download it too")
    return _all_of(paths)


def _all_of(paths: Sequence[Path]) -> Mapping[str, tuple[SafetensorsFile, StoredTensor]]:
    """Every tensor of these files."""
    stored: dict[str, tuple[SafetensorsFile, StoredTensor]] = {}
    for path in paths:
        file = read_safetensors(path)
        for name, tensor in file.tensors.items():
            if name in stored:
                first = stored[name][0].path.name
                raise CheckpointError(f"{path}: tensor {shorten(name)} is in {first} as well; remove one of the files")
            stored[name] = (file, tensor)
    return stored


def shard_names(index: Path) -> dict[str, str]:
    """Tensor name -> file name, from model.safetensors.index.json. Names that leave the folder are refused."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: has no weight_map; download it again")
    plain: set[str] = set()
    for name, shard in names.items():
        if isinstance(shard, str) and shard in plain:
            continue
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or "\0" in shard:
            raise CheckpointError(f"{index}: tensor {shorten(name)} lies in {shorten(str(shard))}, no plain file name")
        plain.add(shard)
    return names


def _indexed(path: Path) -> Mapping[str, tuple[SafetensorsFile, StoredTensor]]:
    names = shard_names(path / INDEX)
    for shard in sorted(set(names.values())):
        if not (path / shard).is_file():
            raise CheckpointError(f"{path / shard}: this shard is missing; download it too")
    files = {shard: read_safetensors(path / shard) for shard in sorted(set(names.values()))}
    stored = {}
    for name, shard in names.items():
        if name not in files[shard].tensors:
            raise CheckpointError(f"{path / shard}: has no tensor {shorten(name)}, which {INDEX} puts there")
        stored[name] = (files[shard], files[shard].tensors[name])
    return stored
