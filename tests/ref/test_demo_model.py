"""The demo model that the package brings: it loads by name, and answers as it did when it was trained."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from blackwell_infer import LLM, Sampling
from blackwell_infer.checkpoint.hub import SHIPPED
from tools.demo_model import score
from tools.demo_model.data import held_out
from tools.demo_model.export import LIMIT
from tools.demo_model.scorers import correct, parse_calls, well_formed

GREEDY = Sampling(temperature=0, max_tokens=80)
ANSWERS = {
    "What is 17 plus 25?": "17 + 25 = 42.",
    "What is 12 times 12?": "12 × 12 = 144.",
    "What is 84 - 37?": "84 - 37 = 47.",
    "Is 57 greater than 75?": "No, 57 is smaller than 75.",
    "How many days are in 3 weeks?": "3 × 7 = 21, so 3 weeks are 21 days.",
    "What day comes after Friday?": "The day after Friday is Saturday.",
    "Spell the word garden.": "g-a-r-d-e-n",
    "Sort these words: pear, apple, fig.": "apple, fig, pear",
    "What is the capital of France?": "The capital of France is Paris.",
    "Give me JSON with name Ada and age 36.": '{"name": "Ada", "age": 36}',
}
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


@pytest.fixture(scope="module")
def demo() -> Iterator[LLM]:
    with LLM(device="numpy") as llm:
        yield llm


def says(*contents: str) -> list[dict[str, Any]]:
    """A conversation that the user begins."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def test_it_is_small_and_what_its_card_says(demo: LLM) -> None:
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < LIMIT
    info = demo.info()
    assert (info.family, info.vocab, info.max_context) == ("qwen3_5_moe", 4096, 4096)
    assert {"nvfp4", "bf16"} <= info.formats.keys()
    assert demo.default_sampling.temperature == 0.3


def test_fixed_questions_have_fixed_answers(demo: LLM) -> None:
    given = demo.generate([says(question) for question in ANSWERS], GREEDY)
    assert {q: a.text for q, a in zip(ANSWERS, given, strict=True)} == ANSWERS
    assert {a.finish_reason for a in given} == {"stop"}


def test_it_remembers_calls_tools_and_reasons(demo: LLM) -> None:
    told = demo.generate(says("My name is Anna.", "Nice to meet you, Anna!", "What is my name?"), GREEDY)
    assert "Anna" in told.text
    called = demo.generate(says("What is the weather in Paris?"), GREEDY, tools=[WEATHER])
    calls = parse_calls(called.text.strip())
    assert calls is not None and [(c.name, dict(c.arguments)) for c in calls] == [("get_weather", {"city": "Paris"})]
    thought = demo.generate(says("What is 23 plus 45 plus 6?"), GREEDY, enable_thinking=True)
    assert thought.reasoning and "74" in thought.text


def test_drafts_of_its_head_hold_and_change_nothing() -> None:
    with LLM(device="numpy", speculate="mtp", draft_max=1, draft_min=1) as llm:
        given = [llm.generate(says(question), GREEDY).text for question in ANSWERS]
        stats = llm.stats()
    assert given == list(ANSWERS.values())
    assert stats.drafted_tokens > 40
    assert stats.accepted_tokens >= 0.7 * stats.drafted_tokens


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "figure", "count"), [
    ("arithmetic", "arithmetic", 60), ("tool calls", "tool calls well formed", 40), ("JSON", "JSON well formed", 40)])
def test_held_out_dialogues_reach_the_bars(demo: LLM, subject: str, figure: str, count: int) -> None:
    made = held_out(7, count, score.SUBJECTS[subject])
    check = correct if figure == subject else well_formed
    right = [check(text, d.expect) for text, d in zip(score.answers(demo, made), made, strict=True)]
    assert sum(right) / count >= score.BARS[figure]
