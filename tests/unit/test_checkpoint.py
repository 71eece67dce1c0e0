"""The Hugging Face folder reader: what it reads, what it refuses, and that damage is always a typed error."""
from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.quant import FORMATS

Arrays = dict[str, np.ndarray[Any, Any]]


def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "model.embed_tokens.weight": rng.standard_normal((6, 4)).astype(np.float32),
        "model.norm.weight": rng.standard_normal(4).astype(np.float16),
        "model.layers.0.mlp.up_proj.weight": rng.standard_normal((3, 4)).astype(ml_dtypes.bfloat16),
        "position_ids": np.arange(5, dtype=np.int64),
        "scalar": np.array(2.5, np.float32),
        "stack": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "conv": np.zeros((2, 3, 2, 2), np.float32),
    }


def folder(path: Path, shards: dict[str, Arrays] | None = None, *, index: bool = False) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"architectures": ["X"], "limit": float("inf")}))
    shards = {"model.safetensors": arrays()} if shards is None else shards
    for name, content in shards.items():
        safetensors.numpy.save_file(content, path / name)
    if index:
        where = {tensor: name for name, content in shards.items() for tensor in content}
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return path


def halves() -> dict[str, Arrays]:
    whole = list(arrays().items())
    return {f"model-{i + 1:05d}-of-00002.safetensors": dict(whole[i::2]) for i in range(2)}


def test_values_are_views_of_the_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder(tmp_path / "m"))
    assert checkpoint.config["architectures"] == ["X"] and checkpoint.config["limit"] == float("inf")
    assert checkpoint.generation == {} and checkpoint.metadata == {}
    for name, array in arrays().items():
        info = checkpoint.tensors[name]
        assert (info.shape, info.nbytes) == (array.shape, array.nbytes)
        if array.ndim <= 3 and array.dtype != np.int64:
            w = checkpoint.weight(name)
            assert w.format == info.format and w.shape == np.atleast_2d(array).reshape(-1, array.shape[-1] if array.ndim
                                                                                       else 1).shape
            assert not np.asarray(w.parts[0]).flags.owndata and not np.asarray(w.parts[0]).flags.writeable
            assert np.array_equal(FORMATS[w.format].dequantize(w), array.astype(np.float32).reshape(w.shape))
    checkpoint.close()
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.weight("scalar")


def test_other_dtypes_are_refused_only_when_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder(tmp_path / "m"))
    assert checkpoint.tensors["position_ids"].format == ""
    with pytest.raises(UnsupportedModelError, match=r"position_ids.*I64.*F32, F16, BF16"):
        checkpoint.weight("position_ids")
    with pytest.raises(CheckpointError, match=r"conv.* 4 dimensions"):
        checkpoint.weight("conv")
    with pytest.raises(CheckpointError, match="no tensor 'lm_head"):
        checkpoint.weight("lm_head.weight")


@pytest.mark.parametrize("index", [True, False])
def test_shards_equal_one_file(tmp_path: Path, index: bool) -> None:
    whole = open_checkpoint(folder(tmp_path / "a"))
    path = folder(tmp_path / "b", halves(), index=index)
    (path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    parts = open_checkpoint(path)
    assert parts.generation == {"eos_token_id": [2, 3]}
    assert set(parts.tensors) == set(whole.tensors)
    for name, info in parts.tensors.items():
        if info.format and len(info.shape) <= 2:
            assert np.array_equal(parts.weight(name).parts[0], whole.weight(name).parts[0])
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: this shard is missing"):
        open_checkpoint(path)


def test_an_index_that_does_not_fit(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", halves(), index=True)
    index = path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    first = next(iter(good["weight_map"].values()))
    for weight_map, match in (
        ({**good["weight_map"], "ghost": first}, "no tensor 'ghost'"),
        ({"a": "../secret.safetensors"}, "no plain file name"), ({"a": "/etc/passwd"}, "no plain file name"),
        ({"a": 3}, "no plain file name"), ([], "no weight_map"), (None, "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=match):
            open_checkpoint(path)


def test_a_tensor_in_two_files_without_an_index(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"a.safetensors": arrays(), "b.safetensors": arrays()})
    with pytest.raises(CheckpointError, match=r"b\.safetensors: tensor .* is in a\.safetensors as well"):
        open_checkpoint(path)


def test_folders_without_weights(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {})
    with pytest.raises(CheckpointError, match="incomplete"):
        open_checkpoint(path)
    (path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match=r"pickled.*pytorch_model\.bin.*safetensors"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="give the folder"):
        open_checkpoint(folder(tmp_path / "n") / "model.safetensors")
    for raw in (b"{", b"[1]", b"\xff", b"[" * 100_000):
        (path / "config.json").write_bytes(raw)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            open_checkpoint(path)


def raw_file(header: Any, data: int = 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "short": (b"abc", "too few"),
    "long header": (struct.pack("<Q", 1 << 63) + bytes(64), "allowed"),
    "header beyond the end": (struct.pack("<Q", 1000) + bytes(64), "in all"),
    "no JSON": (raw_file(b"{{"), "no valid JSON"),
    "no text": (raw_file(b"\xff\xfe{}"), "no valid JSON"),
    "deep": (raw_file(b'{"a":' + b"[" * 100_000), "no valid JSON"),
    "digits": (raw_file(b'{"a":' + b"9" * 10_000 + b"}"), "no valid JSON"),
    "a list": (raw_file([]), "no JSON object"),
    "no entry": (raw_file({"a": 3}), "expected dtype"),
    "fields": (raw_file({"a": {"dtype": "F32"}}), "expected dtype"),
    "dtype": (raw_file({"a": entry("F31")}), "unknown dtype 'F31'"),
    "dtype kind": (raw_file({"a": entry(["F32"])}), "unknown dtype"),
    "NaN": (raw_file({"a": entry(shape=[float("nan")])}), "NaN"),
    "infinite": (raw_file({"a": entry(offsets=[0, float("inf")])}), "Infinity"),
    "real": (raw_file({"a": entry(shape=[4.0])}), "whole numbers"),
    "boolean": (raw_file({"a": entry(shape=[True, 4])}), "whole numbers"),
    "negative": (raw_file({"a": entry(shape=[-4], offsets=[16, 0])}), "whole numbers"),
    "string": (raw_file({"a": entry(shape="4")}), "whole numbers"),
    "huge": (raw_file({"a": entry(shape=[1 << 62, 1 << 62])}), "does not take"),
    "offset count": (raw_file({"a": entry(offsets=[0, 8, 16])}), "3 offsets"),
    "reversed": (raw_file({"a": entry(offsets=[16, 0])}), "does not take"),
    "size": (raw_file({"a": entry(shape=[5])}), "does not take 16 bytes"),
    "half a byte": (raw_file({"a": entry("F4", [3], [0, 2])}, 2), "does not take"),
    "truncated": (raw_file({"a": entry()}, 15), "ends at"),
    "left over": (raw_file({"a": entry()}, 17), "after the last tensor"),
    "hole": (raw_file({"a": entry(offsets=[8, 24])}, 24), "hole"),
    "overlap": (raw_file({"a": entry(), "b": entry(offsets=[8, 24])}, 24), "overlaps"),
    "twice": (raw_file(b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}"),
              "'a' twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    raw, match = BROKEN[case]
    path = folder(tmp_path / "m", {})
    (path / "model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(path)
    assert "model.safetensors" in str(caught.value) and len(str(caught.value)) < 600


def test_every_truncation_is_a_typed_error(tmp_path: Path) -> None:
    file = folder(tmp_path / "m") / "model.safetensors"
    raw = file.read_bytes()
    for size in range(0, len(raw), 3):
        file.write_bytes(raw[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "m")


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_files_give_typed_errors_only(tmp_path: Path, data: st.DataObject) -> None:
    path = folder(tmp_path / "m")
    file = path / "model.safetensors"
    raw = bytearray(file.read_bytes())
    pieces = st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from([b"9" * 9, b"-1", b"1e9", b"NaN", b"[[", b"]", b"{", b'"', b"null", b",", b"F16", b"9" * 20]),
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 9) | st.integers(0, len(raw) - 1))
        new = data.draw(pieces)
        keep = 0 if data.draw(st.booleans()) else len(new)
        raw[at:at + keep] = new
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))):]
    file.write_bytes(bytes(raw))
    tracemalloc.start()
    try:
        checkpoint = open_checkpoint(path)
        for name, info in checkpoint.tensors.items():
            if info.format and len(info.shape) <= 2:
                FORMATS[info.format].dequantize(checkpoint.weight(name))
    except CheckpointError as error:
        assert str(path) in str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_importing_the_package_loads_no_downloader() -> None:
    heavy = "{'gguf', 'huggingface_hub', 'tqdm', 'safetensors', 'tokenizers'}"
    code = f"import sys, blackwell_infer.checkpoint; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
