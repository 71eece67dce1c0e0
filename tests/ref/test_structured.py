"""Structured output and tool calls of the demo model, through `LLM` and through the command line."""
from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import schema_suite
import tool_suite

from blackwell_infer import LLM, Sampling
from blackwell_infer.cli.main import main
from blackwell_infer.errors import RequestError
from blackwell_infer.text.tools import Named, ToolChoice, qwen_xml
from blackwell_infer.types import Grammar, Tool

REPLY = {"type": "object", "properties": {"answer": {"type": "integer"}, "unit": {"enum": ["days", "weeks"]}},
         "required": ["answer", "unit"], "additionalProperties": False}
ASKED = [{"role": "user", "content": "How many days are in 3 weeks?"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(device="numpy", max_context=2048) as opened:
        yield opened


def grammar(schema: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("thinking", [False, True])
def test_answers_follow_a_schema(llm: LLM, temperature: float, thinking: bool) -> None:
    sampling = Sampling(temperature=temperature, seed=1, n=1 + bool(temperature), max_tokens=200,
                        grammar=grammar(REPLY), logprobs=0)
    output = llm.generate(ASKED, sampling, enable_thinking=thinking)
    for choice in output.choices:
        jsonschema.validate(json.loads(choice.text), REPLY)
        assert choice.finish_reason == "stop" and bool(choice.reasoning) is thinking
        assert choice.logprobs is not None and len(choice.logprobs) == len(choice.token_ids)


def test_a_seed_gives_the_same_answer_with_a_grammar_alone_and_in_a_batch(llm: LLM) -> None:
    sampling = Sampling(temperature=1.0, seed=7, max_tokens=100, grammar=grammar(REPLY))
    alone = llm.generate(ASKED, sampling)
    _, beside = llm.generate(["Once", ASKED], [Sampling(temperature=0, max_tokens=20), sampling])
    assert alone.token_ids == beside.token_ids


def test_a_refused_schema_starts_nothing(llm: LLM) -> None:
    with pytest.raises(RequestError, match=r"'not' at \$"):
        llm.generate(ASKED, Sampling(grammar=grammar({"not": {}})))


def test_the_command_line_takes_a_schema(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    status = main(["run", ASKED[0]["content"], "--device", "numpy", "--json-schema", json.dumps(REPLY)])
    out, _ = capsys.readouterr()
    assert status == 0
    jsonschema.validate(json.loads(out), REPLY)


def called(llm: LLM, tools: tuple[Tool, ...], question: str, choice: ToolChoice, temperature: float) -> list[str]:
    """What is wrong with the calls that the model makes; "no end" where it ran out of room."""
    rules = qwen_xml.grammar(tools, choice, True, ("<think>", "</think>"), False)
    declared = [{"type": "function", "function": {"name": t.name, "description": t.description,
                                                  "parameters": t.parameters}} for t in tools]
    sampling = Sampling(temperature=temperature, seed=3, max_tokens=400, grammar=rules)
    output = llm.generate([{"role": "user", "content": question}], sampling, tools=declared)
    if output.finish_reason != "stop":
        return ["no end"]
    count, wrong = tool_suite.faults(qwen_xml, tools, output.text)
    return wrong if choice != "auto" or count else []


def questions(every: int) -> Iterator[tuple[tuple[Tool, ...], str]]:
    if not tool_suite.DATA.is_dir():
        pytest.skip("the functions are not here")
    asked = [json.loads(line)["question"][0][-1]["content"] for file in tool_suite.FILES
             for line in (tool_suite.DATA / file).read_text(encoding="utf-8").splitlines()]
    yield from list(zip(tool_suite.cases(tool_suite.DATA), asked, strict=True))[::every]


def check_calls(llm: LLM, every: int) -> None:
    found = [fault for tools, question in questions(every)
             for choice in ("required", "auto", Named(tools[0].name)) for temperature in (0.0, 1.0)
             for fault in called(llm, tools, question, choice, temperature)]
    open_ended = [fault for fault in found if fault == "no end"]
    assert len(open_ended) == len(found), found
    assert len(open_ended) <= 0.25 * 6 * len(list(questions(every)))


def test_some_functions_are_called_by_their_schemas(llm: LLM) -> None:
    check_calls(llm, 300)


@pytest.mark.slow
def test_all_functions_are_called_by_their_schemas(llm: LLM) -> None:
    check_calls(llm, 30)


@pytest.mark.slow
def test_the_schema_suite_through_the_model(llm: LLM) -> None:
    """Greedy and sampled answers to every accepted schema; one that does not end is not judged."""
    if not schema_suite.SUITE.is_dir():
        pytest.skip("the suite is not here")
    judged = 0
    for draft in schema_suite.DRAFTS:
        for _, schema in schema_suite.cases(schema_suite.SUITE, draft):
            for temperature in (0.0, 1.0):
                sampling = Sampling(temperature=temperature, seed=5, max_tokens=100, grammar=grammar(schema))
                try:
                    output = llm.generate([{"role": "user", "content": "Give me an example."}], sampling)
                except RequestError:
                    continue
                if output.finish_reason == "stop":
                    judged += 1
                    assert schema_suite.judge(draft, schema)(json.loads(output.text)) is None, (schema, output.text)
    assert judged > 300
