"""Speculation in the interpreter: answers are those of the same kernels without it, log-probabilities bit for bit."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blackwell_infer import LLM, Output, Sampling

DATA = Path(__file__).parents[1] / "data"
FEW = dict.fromkeys((3, 4), 40.0)  # answers of two tokens repeat themselves
ASKED = [([5, 9, 2, 5, 9, 2], Sampling(temperature=0, max_tokens=6, logprobs=2, ignore_eos=True)),
         ([3, 4, 3, 4, 3], Sampling(seed=3, max_tokens=10, logprobs=0, frequency_penalty=0.2, repetition_penalty=1.1,
                                    logit_bias=FEW, ignore_eos=True))]


def answers(name: str, **settings: Any) -> tuple[list[Output], int, int]:
    """Two requests in one batch, and how many guesses were checked and held."""
    with LLM(DATA / name, device="emulated", dtype="bfloat16", max_context=64, max_batch=2,
             max_step_tokens=16, **settings) as llm:
        outputs = llm.generate([prompt for prompt, _ in ASKED], [sampling for _, sampling in ASKED])
        return outputs, llm.stats().drafted_tokens, llm.stats().accepted_tokens


@pytest.mark.parametrize(("name", "settings"), [
    ("llama", {"speculate": "ngram", "draft_min": 3, "draft_max": 3}),
    pytest.param("qwen3_5", {"speculate": "mtp", "draft_min": 2, "draft_max": 2}, marks=pytest.mark.slow),
    ("qwen3_5_moe", {"speculate": "auto", "draft_min": 3, "draft_max": 3})])
def test_answers_are_those_without(name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
                                   pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    expected, nothing, _ = answers(name, speculate="off")
    got, drafted, accepted = answers(name, **settings)
    assert [o.choices for o in got] == [o.choices for o in expected]
    assert nothing == 0 < drafted and (accepted > 0 or settings["speculate"] != "ngram")
