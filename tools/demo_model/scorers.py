"""Whether an answer is what a dialogue expects."""

from __future__ import annotations

import json
import re
from typing import Any

from .dialogue import Call, Expect

CALL = re.compile(
    r"<tool_call>\n<function=([^>\n]+)>\n((?:<parameter=[^>\n]+>\n.*?\n</parameter>\n)*)</function>\n</tool_call>", re.S
)
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>\n", re.S)


def parse_calls(text: str) -> list[Call] | None:
    """The calls of an answer; None if anything in it is not well formed. Values stay text."""
    if "<tool_call>" not in text:
        return None
    found = [Call(match[1], dict(PARAMETER.findall(match[2]))) for match in CALL.finditer(text)]
    rest = CALL.sub("", text)
    return None if "<" in rest or rest.strip() else found


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parse_json(text: str) -> tuple[bool, Any]:
    try:
        return True, json.loads(text)
    except ValueError:
        return False, None


def well_formed(answer: str, expect: Expect) -> bool:
    """Whether a tool call or a JSON text has the form that was asked for, right or not."""
    if expect.how == "tool":
        return parse_calls(answer) is not None
    if expect.how == "json":
        valid, value = parse_json(answer)
        wanted = expect.value
        if isinstance(wanted, dict):
            return valid and isinstance(value, dict) and list(value) == list(wanted)
        return valid and isinstance(value, type(wanted))
    return True


def correct(answer: str, expect: Expect) -> bool:
    """`end`: the answer ends with the value, punctuation aside; `text`: the value occurs in it; `tool`: the same calls
    with the same arguments; `json`: the same value, types included; "": anything that is not empty."""
    answer = answer.strip()
    if expect.how == "end":
        text, value = answer.rstrip(" .!"), str(expect.value).rstrip(" .!")
        before = text[: -len(value)] if text.endswith(value) else "x"
        return text.endswith(value) and not (before and (before[-1].isalnum() or before[-1] == "-"))
    if expect.how == "text":
        return str(expect.value) in answer
    if expect.how == "tool":
        calls = parse_calls(answer)
        wanted = [(call.name, {k: as_text(v) for k, v in call.arguments.items()}) for call in expect.value]
        return calls is not None and [(call.name, dict(call.arguments)) for call in calls] == wanted
    if expect.how == "json":
        return parse_json(answer) == (True, expect.value) and json.dumps(parse_json(answer)[1]) == json.dumps(
            expect.value
        )
    return bool(answer)
