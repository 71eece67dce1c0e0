"""Tool calls: what parsers make of texts however they are cut, and what real templates write."""
from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackwell_infer.text.tools import CallArguments, CallStart, Dialect, Piece, qwen_xml
from blackwell_infer.types import Tool

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
SAMPLES = {
    "qwen_xml": (qwen_xml, f"I look.\n\n{XML}\n<tool_call>\n<function=clock>\n</function>\n</tool_call>", "I look.", [
        ("get_weather", {"city": 'Zü"r<i>ch\\', "days": 3, "exact": True, "note": None, "where": {"lat": 1.5}}),
        ("clock", {}),
    ]),
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
