"""tools/accuracy.py: its float64 evaluation is that of the reference ops, and it sees rounding and wrong weights."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tooling import load_tool

DATA = Path(__file__).parents[1] / "data"
accuracy = load_tool("accuracy")


@pytest.mark.parametrize("model", ["llama", "mistral", "qwen3", "mixtral", "qwen3_moe_pruned", "qwen3_5"])
def test_exact_logits_are_what_float32_approaches(model: str) -> None:
    path = str(DATA / model)
    pieces = accuracy.token_pieces(path, None, 90, 60)
    assert [len(ids) for ids in pieces] == [60, 30]
    exact = accuracy.exact_logits(path, pieces)
    near = accuracy.measured(path, pieces, exact, {"device": "numpy", "dtype": "float32"})
    assert near.distance < 3e-6 and near.best == 1 and near.mean < 1e-10
    rounded = accuracy.measured(path, pieces, exact, {"device": "numpy", "dtype": "bfloat16"})
    assert 1e-3 < rounded.distance < 5e-2 and near.mean < rounded.mean < accuracy.DIVERGENCE
    assert not near.misses(rounded) and rounded.misses(near)


def test_roundings_that_change_experts_show() -> None:
    """Random weights of a hybrid with experts: bfloat16 chooses others now and then."""
    path = str(DATA / "qwen3_5_moe")
    pieces = accuracy.token_pieces(path, None, 90, 60)
    exact = accuracy.exact_logits(path, pieces)
    near = accuracy.measured(path, pieces, exact, {"device": "numpy", "dtype": "float32"})
    rounded = accuracy.measured(path, pieces, exact, {"device": "numpy", "dtype": "bfloat16"})
    assert near.distance < 3e-6 and near.best == 1 and near.mean < 1e-10
    assert 1e-3 < rounded.distance < 5e-2 and rounded.largest > 10 * rounded.mean and rounded.misses(near)


def test_other_weights_are_far_away() -> None:
    pieces = [np.arange(40, dtype=np.int32)]
    exact = accuracy.exact_logits(str(DATA / "qwen3_moe"), pieces)
    other = accuracy.measured(str(DATA / "qwen3_moe_pruned"), pieces, exact, {"device": "numpy"})
    assert other.distance > 0.5 and other.best < 0.5


def test_a_table_is_printed_and_a_missed_bar_is_an_error(monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    run = [str(DATA / "llama"), "--device", "numpy", "--tokens", "20"]
    assert accuracy.main(run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[3].startswith("| llama | numpy, steps of up to 16 |")
    monkeypatch.setattr(accuracy, "SLACK", -1.0)
    assert accuracy.main(run) == 1
    assert accuracy.main(["no such model"]) == 2 and "accuracy: " in capsys.readouterr().err
