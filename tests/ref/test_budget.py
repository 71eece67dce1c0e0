"""Budgets of reasoning through `LLM` and the command line, on the demo model."""
from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from test_structured import ASKED, REPLY, grammar

from blackwell_infer import LLM, Sampling
from blackwell_infer.cli.main import main
from blackwell_infer.errors import RequestError

LONG = 150


@pytest.fixture(scope="module", params=["off", "auto"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with LLM(device="numpy", max_context=1024, max_batch=4, speculate=request.param, draft_min=3) as opened:
        yield opened


def thought(llm: LLM, ids: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens before the closing marker."""
    end = next(i for i in range(len(ids)) if "</think>" in llm.tokenizer.decode(ids[: i + 1]))
    text = llm.tokenizer.decode(ids[: end + 1]).partition("</think>")[0].rstrip("\n")
    return next(ids[:i] for i in range(len(ids)) if llm.tokenizer.decode(ids[:i]).rstrip("\n") == text)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.8, "seed": 4, "n": 3},
                                      {"temperature": 0.0, "repetition_penalty": 1.1, "logprobs": 2}])
def test_reasoning_ends_where_the_budget_does(llm: LLM, settings: dict[str, Any]) -> None:
    free = llm.generate(ASKED, Sampling(max_tokens=LONG, **settings), enable_thinking=True)
    lengths = [len(thought(llm, choice.token_ids)) for choice in free.choices]
    assert min(lengths) > 6
    for budget in (0, 1, 5, min(lengths), LONG):
        held = llm.generate(ASKED, Sampling(max_tokens=LONG, thinking_budget=budget, **settings), enable_thinking=True)
        for choice, before in zip(held.choices, free.choices, strict=True):
            want = thought(llm, before.token_ids)[:budget]
            assert thought(llm, choice.token_ids) == want, "what comes before the end is as it was"
            assert choice.reasoning == llm.tokenizer.decode(want).strip("\n")
            assert choice.text and choice.finish_reason == "stop"
            if len(want) < budget:
                assert choice == before, "a budget that is not spent changes nothing"


def test_many_at_once_as_alone(llm: LLM) -> None:
    samplings = [Sampling(temperature=0.7, seed=i, max_tokens=60, thinking_budget=budget)
                 for i, budget in enumerate((None, 3, 8, 0, 15, None))]
    alone = [llm.generate(ASKED, sampling, enable_thinking=True).choices for sampling in samplings]
    beside = llm.generate([ASKED] * len(samplings), samplings, enable_thinking=True)
    assert [output.choices for output in beside] == alone


@pytest.mark.parametrize("budget", [0, 4, LONG])
def test_a_schema_holds_behind_it(llm: LLM, budget: int) -> None:
    sampling = Sampling(temperature=0, max_tokens=LONG, grammar=grammar(REPLY), thinking_budget=budget)
    output = llm.generate(ASKED, sampling, enable_thinking=True)
    jsonschema.validate(json.loads(output.text), REPLY)
    assert len(thought(llm, output.token_ids)) <= budget and bool(output.reasoning) is bool(budget)


def test_it_limits_nothing_but_reasoning(llm: LLM) -> None:
    for prompt, variables in ((ASKED, {"enable_thinking": False}), ("Once upon a time", {})):
        plain = llm.generate(prompt, Sampling(temperature=0, max_tokens=30), **variables)
        held = llm.generate(prompt, Sampling(temperature=0, max_tokens=30, thinking_budget=0), **variables)
        assert held.choices == plain.choices
    with pytest.raises(RequestError, match="thinking_budget"):
        llm.generate(ASKED, Sampling(thinking_budget=-1))


def test_the_command_line_takes_a_budget(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["run", ASKED[0]["content"], "--device", "numpy", "--thinking-budget", "3"]) == 0
    assert "21" in capsys.readouterr().out
