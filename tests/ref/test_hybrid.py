"""Hybrids of recurrent and attention layers on the reference ops: hidden states of every layer, and the head that
guesses the token after the next, against goldens of transformers."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from harness import Model

from blackwell_infer.models import hybrid
from blackwell_infer.ops import ref

NAMES = ("qwen3_5", "qwen3_5_moe")
Golden = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    return ROOT / "tests" / "data" / str(request.param)


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
    return y, np.asarray(model.family.logits(ref, model.cfg, model.params, y))
