"""Whole models on the reference ops against goldens: logits of transformers in float32, and greedy tokens."""
from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from harness import Model

from blackwell_infer.text.gguf_vocab import tokenizer_from_gguf

Golden = dict[str, np.ndarray[Any, Any]]
CHUNKS = (83, 64, 33, 32, 16, 7)


@pytest.fixture(scope="module")
def golden(golden_folder: Path) -> Golden:
    with np.load(golden_folder / "golden.npz") as arrays:
        g = {name: arrays[name] for name in ("input_ids", "logits", "logits_bf16", "greedy")}
    ids = g["input_ids"].reshape(-1)
    vocab = g["logits"].shape[-1]
    return g | {"input_ids": ids, "logits": g["logits"].reshape(len(ids), vocab),
                "logits_bf16": g["logits_bf16"].reshape(len(ids), vocab)}


@pytest.fixture(scope="module")
def model(golden_folder: Path) -> Model:
    return Model(golden_folder)


def difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("chunk", CHUNKS)
def test_prefill(model: Model, golden: Golden, chunk: int) -> None:
    assert difference(model.prefill(golden["input_ids"], chunk), golden["logits"]) < 1e-3


def test_token_by_token_gives_the_bits_of_small_chunks(model: Model, golden: Golden) -> None:
    alone = model.prefill(golden["input_ids"], 1)
    assert difference(alone, golden["logits"]) < 1e-3
    assert np.array_equal(alone, model.prefill(golden["input_ids"], 5))
    assert np.array_equal(alone, model.prefill(golden["input_ids"], 16))


@pytest.mark.parametrize("chunk", (1 << 30, 32, 7, 1))
def test_greedy(model: Model, golden: Golden, chunk: int) -> None:
    assert model.greedy(golden["input_ids"], 16, chunk) == golden["greedy"].tolist()


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_half_precision_is_no_worse_than_another_engine(golden_folder: Path, golden: Golden, dtype: str) -> None:
    got = Model(golden_folder, dtype).prefill(golden["input_ids"], 1 << 30)
    other = np.sqrt(np.mean((golden["logits_bf16"] - golden["logits"]) ** 2))
    ours = np.sqrt(np.mean((got - golden["logits"]) ** 2))
    assert ours < 1.1 * other


@pytest.fixture(scope="module")
def converter() -> ModuleType:
    """tools/hf_to_gguf.py as a module."""
    spec = importlib.util.spec_from_file_location("hf_to_gguf", ROOT / "tools" / "hf_to_gguf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ("f32", "bf16"))
def test_gguf_gives_the_same_logits(golden_folder: Path, golden: Golden, converter: ModuleType, tmp_path: Path,
                                    kind: str) -> None:
    converter.convert(golden_folder, tmp_path / "model.gguf", kind=kind, tokenizer=False)
    model = Model(tmp_path / "model.gguf")
    assert difference(model.prefill(golden["input_ids"], 1 << 30), golden["logits"]) < 1e-3
    assert model.greedy(golden["input_ids"], 16) == golden["greedy"].tolist()
    model.checkpoint.close()


@pytest.mark.parametrize("kind", ("q8_0", "q6_k"))
def test_quantised_gguf_stays_near(golden_folder: Path, golden: Golden, converter: ModuleType, tmp_path: Path,
                                   kind: str) -> None:
    """Not the same values, but the same model: errors of 8 and 6 bits, not of a misread layout."""
    converter.convert(golden_folder, tmp_path / "model.gguf", kind=kind, tokenizer=False)
    model = Model(tmp_path / "model.gguf")
    if not any(tensor.format == kind for tensor in model.checkpoint.tensors.values()):
        pytest.skip(f"no matrix of this model is wide enough for {kind}")
    got = model.prefill(golden["input_ids"], 1 << 30)
    assert np.sqrt(np.mean((got - golden["logits"]) ** 2)) < 0.15 * golden["logits"].std()
    model.checkpoint.close()


def test_stories_reproduce_a_float64_reference(shared_data: Path) -> None:
    folder = shared_data / "models" / "stories260K"
    expected = json.loads((folder / "golden.json").read_text())
    model = Model(folder / "stories260K.gguf")
    for answer in expected["greedy"]:
        assert model.greedy(answer["prompt_ids"], len(answer["generated_ids"])) == answer["generated_ids"]


def test_stories_score_text_as_a_float64_reference_does(shared_data: Path) -> None:
    folder = shared_data / "models" / "stories260K"
    model = Model(folder / "stories260K.gguf")
    tokenizer = tokenizer_from_gguf(model.checkpoint.metadata)
    for passage in json.loads((folder / "golden.json").read_text())["nll"][:6]:
        text = (shared_data / passage["corpus"]).read_text()[passage["char_start"] : passage["char_end"]]
        ids = np.asarray(tokenizer.encode(text))
        assert len(ids) == passage["n_tokens"]
        z = model.prefill(ids, 1 << 30)[:-1].astype(np.float64)
        nll = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), ids[1:]]
        assert abs(nll.sum() - passage["sum_nll"]) < 1e-3
