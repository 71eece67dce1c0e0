"""Hybrids of recurrent and attention layers on the reference ops: hidden states of every layer, and the head that
guesses the token after the next, against goldens of transformers."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from harness import Model
from tooling import load_tool

from blackwell_infer.models import hybrid
from blackwell_infer.ops import ref

NAMES = ("qwen3_5", "qwen3_5_moe")
Golden = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    return ROOT / "tests" / "data" / str(request.param)


@pytest.fixture(scope="module")
def gguf(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The same model in a GGUF file, values as they are: norms, decays and the order of heads are stored otherwise."""
    out = tmp_path_factory.mktemp("gguf") / "m.gguf"
    load_tool("hf_to_gguf").convert(folder, out, kind="f32", tokenizer=False)
    model = Model(out)
    yield model
    model.checkpoint.close()


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    with np.load(folder / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model(folder)


def states(model: Model, ids: np.ndarray[Any, Any], chunk: int) -> np.ndarray[Any, Any]:
    """[L + 1, T, H] as `models.hybrid.hidden_states` gives them."""
    model.reset()
    parts = []
    for first in range(0, len(ids), chunk):
        batch = model.batch(ids[first : first + chunk])
        model.length += len(batch.ids)
        parts.append(np.stack([np.asarray(h) for h in hybrid.hidden_states(
            ref, model.cfg, model.params, model.state, batch, model.dtype)]))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("chunk", (83, 20, 1))
def test_hidden_states_of_every_layer(model: Model, golden: Golden, chunk: int) -> None:
    got = states(model, golden["input_ids"], chunk)
    assert got.shape == golden["hidden"].shape
    assert np.abs(got - golden["hidden"]).max() < 1e-3


@pytest.mark.parametrize("chunk", (82, 20, 1))
def test_guesses_of_the_token_after_the_next(model: Model, golden: Golden, chunk: int) -> None:
    hidden = states(model, golden["input_ids"], 83)[-1]
    assert np.abs(guesses(model, golden["input_ids"], hidden, chunk)[1] - golden["mtp_logits"]).max() < 1e-3


def test_a_gguf_file_gives_the_same(gguf: Model, golden: Golden) -> None:
    assert gguf.cfg.tiled and gguf.cfg.plus == 0 and "mtp.fc.weight" in gguf.checkpoint.tensors
    hidden = states(gguf, golden["input_ids"], 83)
    assert np.abs(hidden - golden["hidden"]).max() < 1e-3
    assert np.abs(guesses(gguf, golden["input_ids"], hidden[-1], 40)[1] - golden["mtp_logits"]).max() < 1e-3


def test_guesses_follow_guesses(model: Model, golden: Golden) -> None:
    """A second guess from the first one's state and token: what the head says of a longer text in which the first guess
    stands."""
    draft = model.family.draft
    assert draft is not None
    ids = golden["input_ids"]
    hidden = states(model, ids, 83)[-1]
    y, z = guesses(model, ids, hidden, 82)
    first = int(z[-1].argmax())
    more = np.concatenate((ids, [first]))
    both, _ = guesses(model, more, np.concatenate((hidden[:-1], y[-1:])), 83)
    again, _ = guesses(model, more, np.concatenate((hidden[:-1], y[-1:])), 1)
    assert np.abs(both[:-1] - y).max() < 1e-4 and np.abs(both - again).max() < 1e-4


def guesses(model: Model, ids: np.ndarray[Any, Any], hidden: np.ndarray[Any, Any],
            chunk: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(states [T - 1, H], logits [T - 1, V]) of the head over a whole text."""
    draft = model.family.draft
    assert draft is not None
    head = draft.build(model.cfg, model.load)
    kv = model.cache(model.table.shape[1], draft.cache(model.cfg))
    model.reset()
    found = []
    for first in range(0, len(ids) - 1, chunk):
        batch = model.batch(ids[1 + first : 1 + first + chunk])
        model.length += len(batch.ids)
        found.append(np.asarray(draft.forward(ref, model.cfg, model.params, head, kv, batch,
                                              hidden[first : first + len(batch.ids)], model.dtype)))
    y = np.concatenate(found)
    return y, np.asarray(draft.logits(ref, model.cfg, model.params, head, y))
