"""Speculation on the GPU at hand: answers are those without it, log-probabilities bit for bit, with recorded steps."""
from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from blackwell_infer import LLM, Output, Sampling
from blackwell_infer.device.info import list_devices

pytestmark = pytest.mark.gpu

DATA = Path(__file__).resolve().parents[1] / "data"
FEW = dict.fromkeys((3, 4, 5), 40.0)  # answers of three tokens repeat themselves
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0}, {"temperature": 0.8, "logit_bias": FEW, "logprobs": 2}, {"top_p": 0.9, "top_k": 30},
    {"frequency_penalty": 0.3, "repetition_penalty": 1.1, "logit_bias": FEW, "logprobs": 0}, {"min_p": 0.05})


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    found = list_devices()
    if not found.devices:
        pytest.skip(found.reason)


def answers(name: str, batch: int, **settings: Any) -> tuple[list[Output], int, int]:
    """Eight requests, `batch` at once; how many guesses were checked and held."""
    draw = random.Random(7)
    with LLM(DATA / name, device="cuda", dtype="bfloat16", max_context=128, max_batch=batch, max_step_tokens=16,
             **settings) as llm:
        prompts = [[draw.randrange(llm.info().vocab) for _ in range(draw.choice((1, 3, 6)))] * 2 for _ in range(8)]
        samplings = [Sampling(seed=i, max_tokens=40, ignore_eos=True, **KINDS[i % len(KINDS)]) for i in range(8)]
        outputs = llm.generate(prompts, samplings)
        return outputs, llm.stats().drafted_tokens, llm.stats().accepted_tokens


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("name", "settings"), [
    ("llama", {"speculate": "ngram"}), ("llama", {"speculate": "ngram", "draft_min": 8}),
    ("qwen3_5", {"speculate": "mtp", "draft_min": 1, "draft_max": 1}),
    ("qwen3_5", {"speculate": "mtp", "draft_min": 5, "draft_max": 5}),
    ("qwen3_5_moe", {"speculate": "auto", "draft_min": 3, "draft_max": 3}), ("qwen3_5_moe", {})])
def test_answers_are_those_without(name: str, settings: dict[str, Any], batch: int) -> None:
    expected, nothing, _ = answers(name, batch, speculate="off")
    got, drafted, accepted = answers(name, batch, **settings)
    assert [o.choices for o in got] == [o.choices for o in expected]
    assert nothing == 0 and (drafted > 0 or not settings)
    assert accepted > 0 or settings.get("speculate") != "ngram"
