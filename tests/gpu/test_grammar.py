"""Grammars on the GPU at hand: answers obey them, and are the same recorded, op by op, and with guesses."""
from __future__ import annotations

import json
from typing import Any

import pytest

from blackwell_infer import LLM, Output, Sampling
from blackwell_infer.device.info import list_devices
from blackwell_infer.types import Grammar

pytestmark = pytest.mark.gpu

SCHEMA = json.dumps({"type": "object", "required": ["animal", "legs"], "additionalProperties": False, "properties": {
    "animal": {"enum": ["a spider", "a dog", "a bird"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 99}}})


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    found = list_devices()
    if not found.devices:
        pytest.skip(found.reason)


def answers(batch: int, **settings: Any) -> list[Output]:
    """Eight requests, `batch` at once, every fourth without a grammar."""
    with LLM(device="cuda", max_context=256, max_batch=batch, max_step_tokens=16, **settings) as llm:
        prompts = [[{"role": "user", "content": f"Give me JSON about animal {i}."}] for i in range(8)]
        samplings = [Sampling(seed=i, temperature=0.3 * i, max_tokens=40, logprobs=2,
                              grammar=None if i % 4 == 3 else Grammar("json_schema", SCHEMA)) for i in range(8)]
        return llm.generate(prompts, samplings)


@pytest.mark.parametrize("batch", [1, 4])
def test_answers_obey_and_are_the_same_whatever_the_way(batch: int) -> None:
    expected = answers(batch, speculate="off")
    for i, output in enumerate(expected):
        if i % 4 != 3:
            assert output.finish_reason == "stop" and json.loads(output.text)["legs"] < 100
    for settings in ({"speculate": "off", "graphs": False}, {"speculate": "mtp", "draft_min": 3, "draft_max": 3},
                     {"speculate": "ngram", "draft_min": 8}, {}):
        assert [o.choices for o in answers(batch, **settings)] == [o.choices for o in expected], settings
