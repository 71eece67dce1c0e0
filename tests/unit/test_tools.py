"""Tool calls: what parsers make of texts however they are cut, and what real templates write."""
from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackwell_infer.text.template import ChatTemplate
from blackwell_infer.text.tools import (
    DIALECTS,
    CallArguments,
    CallStart,
    Dialect,
    Piece,
    deepseek,
    deepseek_v31,
    dialect_of,
    gemma4,
    hermes,
    llama3,
    mistral,
    mistral_args,
    qwen_xml,
)
from blackwell_infer.types import Message, Tool, ToolCall

WEATHER = Tool(name="get_weather", parameters={
    "type": "object", "required": ["city"],
    "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"},
        "unit": {"enum": ["C", "F"]}, "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "where": {"type": "object", "properties": {"lat": {"type": "number"}}}, "tags": {"type": "array"},
    },
})
CLOCK = Tool(name="clock")
TOOLS = (WEATHER, CLOCK)


def gathered(pieces: tuple[Piece, ...] | list[Piece]) -> tuple[str, list[tuple[str, str]]]:
    """The text outside of calls and the calls as (name, arguments). Ids must differ, starts come before arguments."""
    text, calls, ids = "", [], set()
    for piece in pieces:
        match piece:
            case CallStart(index, id, name):
                assert index == len(calls) and id not in ids
                ids.add(id)
                calls.append((name, ""))
            case CallArguments(index, delta):
                assert index == len(calls) - 1 and delta
                calls[index] = (calls[index][0], calls[index][1] + delta)
            case str():
                assert piece
                text += piece
    return text, calls


def parsed(dialect: Dialect, text: str, cuts: tuple[int, ...] = ()) -> tuple[str, list[tuple[str, str]]]:
    """What a parser makes of a text that comes in parts."""
    parser = dialect.Parser(TOOLS)
    places = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    pieces: list[Piece] = []
    for start, end in pairwise(places):
        pieces += parser.push(text[start:end])
    return gathered([*pieces, *parser.flush()])


def args(calls: list[tuple[str, str]]) -> list[tuple[str, Any]]:
    return [(name, json.loads(text)) for name, text in calls]


XML = """<tool_call>
<function=get_weather>
<parameter=city>
Zü"r<i>ch\\
</parameter>
<parameter=days>
3
</parameter>
<parameter=exact>
True
</parameter>
<parameter=note>
null
</parameter>
<parameter=where>
{"lat": 1.5}
</parameter>
</function>
</tool_call>"""
BEGIN, D = "<tool_call>", "<｜tool▁calls▁begin｜>"
JSON = r'{"city": "Z\u00fc\"r</tool_call>i}ch\\", "days": 3, "where": {"lat": [1.5]}}'
CALLS = [("get_weather", {"city": 'Zü"r</tool_call>i}ch\\', "days": 3, "where": {"lat": [1.5]}}), ("clock", {})]
SAMPLES: dict[str, tuple[Dialect, str, str, list[tuple[str, Any]]]] = {
    "qwen_xml": (qwen_xml, f"I look.\n\n{XML}\n<tool_call>\n<function=clock>\n</function>\n</tool_call>", "I look.", [
        ("get_weather", {"city": 'Zü"r<i>ch\\', "days": 3, "exact": True, "note": None, "where": {"lat": 1.5}}),
        ("clock", {}),
    ]),
    "hermes": (hermes, f'I look.\n{BEGIN}\n{{"name": "get_weather", "arguments": {JSON}}}\n</tool_call>\n{BEGIN}\n'
               '{"name":"clock", "arguments":{}}\n</tool_call>', "I look.", CALLS),
    "llama3": (llama3, f'<|python_tag|>{{"name": "get_weather", "parameters": {JSON}}}; '
               '{"name": "clock", "parameters": {}}', "", CALLS),
    "mistral": (mistral, f'I look.[TOOL_CALLS][{{"name": "get_weather", "arguments": {JSON}, "id": "abcdefghi"}}, '
                '{"name": "clock", "arguments": {}}]', "I look.", CALLS),
    "mistral_args": (mistral_args, f"I look.[TOOL_CALLS]get_weather[ARGS]{JSON}[TOOL_CALLS]clock[ARGS]{{}}", "I look.",
                     CALLS),
    "deepseek": (deepseek, f"I look.{D}<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{JSON}"
                 "\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}\n```"
                 "<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "I look.", CALLS),
    "deepseek_v31": (deepseek_v31, f"I look.{D}<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{JSON}<｜tool▁call▁end｜>"
                     "<｜tool▁call▁begin｜>clock<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
                     "I look.", CALLS),
    "gemma4": (gemma4, 'I look.<|tool_call>'
               'call:get_weather{city:<|"|>Zü"r</tool_call>i}ch\\<|"|>,days:3,where:{lat:[1.5]}}'
               "<tool_call|><|tool_call>call:clock{}<tool_call|>", "I look.", CALLS),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_of_each_dialect(name: str) -> None:
    dialect, text, before, calls = SAMPLES[name]
    got, found = parsed(dialect, text)
    assert got == before and args(found) == calls


@pytest.mark.parametrize("name", SAMPLES)
@given(cuts=st.lists(st.integers(0, 1000), max_size=12).map(tuple), data=st.data())
def test_any_cut_gives_the_same(name: str, cuts: tuple[int, ...], data: st.DataObject) -> None:
    dialect, text, _, _ = SAMPLES[name]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    noise = data.draw(st.sampled_from(["", "<", "<tool_call>", "[TOOL_CALLS]", "{", '"', "\n", "é"]))
    text = text[:start] + noise + text[end:]
    assert parsed(dialect, text, cuts) == parsed(dialect, text) == parsed(dialect, text, tuple(range(len(text))))


@pytest.mark.parametrize("name", SAMPLES)
@given(text=st.text(st.sampled_from('<tool_call>/\n{}"[]:, ab=fp')))
def test_no_text_is_an_exception_and_text_without_a_call_stays_whole(name: str, text: str) -> None:
    got, calls = parsed(SAMPLES[name][0], text)
    assert calls or got == text


@pytest.mark.parametrize("name", SAMPLES)
def test_text_is_passed_on_promptly_but_half_a_marker_is_held_back(name: str) -> None:
    dialect, text, _, _ = SAMPLES[name]
    parser = dialect.Parser(TOOLS)
    assert parser.push("Well") == ("Well",)
    marker = next(m for m in dialect.MARKERS if m in text)
    assert parser.push(" then" + marker[:-1]) == (" then",)
    assert parser.push("x") == (marker[:-1] + "x",)


TEMPLATES = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers" / "chat-templates"
TEACH = {
    "Qwen3.5-4B": qwen_xml, "Qwen3-Coder": qwen_xml, "Qwen-Qwen3-0.6B": hermes, "Qwen-Qwen2.5-7B-Instruct": hermes,
    "Qwen-QwQ-32B": hermes, "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": hermes,
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": hermes, "meta-llama-Llama-3.1-8B-Instruct": llama3,
    "meta-llama-Llama-3.2-3B-Instruct": llama3, "meta-llama-Llama-3.3-70B-Instruct": llama3,
    "mistralai-Mistral-Nemo-Instruct-2407": mistral, "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": deepseek,
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": deepseek, "deepseek-ai-DeepSeek-V3.1": deepseek_v31,
    "google-gemma-2-2b-it": None, "microsoft-Phi-3.5-mini-instruct": None, "openai-gpt-oss-120b": None,
}
ONE_CALL = [("get_weather", {"city": 'Zü"r ich', "days": 3, "where": {"lat": 1.5}})]
TWO_CALLS = [*ONE_CALL, ("clock", {})]


def real(name: str) -> str:
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip("real chat templates are not here")
    return path.read_text(encoding="utf-8")


def turns(calls: list[tuple[str, Any]]) -> list[Message]:
    made = tuple(ToolCall(id=f"call{i:05}", name=name, arguments=json.dumps(a)) for i, (name, a) in enumerate(calls))
    return [Message(role="user", content="Weather?"), Message(role="assistant", tool_calls=made)]


@pytest.mark.parametrize("name", TEACH)
def test_a_template_is_claimed_by_its_dialect_and_by_no_other(name: str) -> None:
    source = real(name)
    assert dialect_of(source) is TEACH[name]
    assert sum(dialect.claims(source) for dialect in DIALECTS) == (TEACH[name] is not None)


# The template of R1's distillations takes arguments as text and writes a call only where content is null, which is not
# what other templates want; deepseek's form is in SAMPLES.
@pytest.mark.parametrize("name", [n for n, dialect in TEACH.items() if dialect not in (None, deepseek)])
def test_what_a_template_writes_is_read_back(name: str) -> None:
    dialect = TEACH[name]
    assert dialect is not None
    chat = ChatTemplate(real(name), "", "")
    calls = ONE_CALL if dialect is llama3 else TWO_CALLS
    before = chat.render(turns(calls)[:1], add_generation_prompt=False, enable_thinking=False)
    whole = chat.render(turns(calls), add_generation_prompt=False, enable_thinking=False)
    start = next(i for i, (a, b) in enumerate(zip(before + "\0", whole, strict=False)) if a != b)
    answer = whole[start:]
    for head in ("<|im_start|>assistant\n", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<｜Assistant｜>",
                 "<think>\n\n</think>\n\n", "<think></think>"):
        answer = answer.removeprefix(head)
    for end in ("<|im_end|>\n", "<|eot_id|>", "<｜end▁of▁sentence｜>"):
        answer = answer.removesuffix(end)
    text, found = parsed(dialect, answer)
    assert (text, args(found)) == ("", calls)
