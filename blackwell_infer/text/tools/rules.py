"""Grammars of whole answers in llguidance's Lark: reasoning, text, and calls whose arguments follow a schema.

They are about the text that a reader of the answer sees, markers of calls included. A marker that is a control token
stands for its text (`Text.tokenizer.visible`).
"""
from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from blackwell_infer.errors import RequestError
from blackwell_infer.text.grammar import json_answer
from blackwell_infer.text.grammar_schema import check_schema
from blackwell_infer.text.grammar_terms import GAP, literal, thought, without
from blackwell_infer.text.tools.arguments import closed, find
from blackwell_infer.text.tools.calls import Named, ToolChoice
from blackwell_infer.types import Grammar, Tool

STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How chat templates write JSON, and so how models write it in calls."""


def json_rule(schema: object) -> str:
    """A rule's expression: JSON of this schema, written as chat templates write it."""
    own = schema if isinstance(schema, dict) else {} if schema is True else {"not": {}}
    return "%json " + json.dumps({**own, "x-guidance": STYLE}, ensure_ascii=False)


def arguments(tool: Tool) -> dict[str, object]:
    """The schema that the arguments of a call are held to.

    A tool that is not strict is held to any JSON object where its schema cannot be enforced. RequestError otherwise.
    """
    schema = closed(tool.parameters)
    try:
        check_schema(schema, f"tools.{tool.name}.parameters")
    except RequestError:
        if tool.strict:
            raise
        return {"type": "object"}
    return schema


def chosen(tools: Sequence[Tool], choice: ToolChoice) -> tuple[Tool, ...]:
    """The tools that may be called."""
    if not isinstance(choice, Named):
        return () if choice == "none" else tuple(tools)
    tool = find(tools, choice.name)
    if tool is None:
        known = ", ".join(t.name for t in tools) or "none"
        raise RequestError(f"tool_choice names {choice.name!r}, which is not among the tools; there are: {known}")
    return (tool,)


def frame(
    tools: Sequence[Tool], choice: ToolChoice, parallel: bool, reasoning: tuple[str, str] | None, inside: bool,
    answer: Grammar | None, *, opener: str, call: Callable[[str, Tool], list[str]], first: str = "",
    between: str | None = None, last: str = "", taboo: Sequence[str] = (), not_text: str = "",
) -> Grammar | None:
    """The grammar of an answer: see `Dialect.grammar`.

    Calls begin with `opener`, which never stands in text, nor does what is `taboo`; then comes `first`. `call` makes
    the rules of one tool's call, the first of which has the given name. Calls are parted by `between` (None: one call
    at most) and closed by `last`. No text is what the regular expression `not_text` matches.
    """
    if not tools:
        return None
    able = chosen(tools, choice)
    banned = [m for m in (opener, *taboo, reasoning[0] if reasoning and not inside else "") if m]
    if answer is None:
        said, lines = "TEXT?", [f"TEXT: {without(*banned)}" + (f" & ~/{not_text}/" if not_text else "")]
    else:
        said, lines = "answer", [f"answer: {json_answer(answer)}"]
    body = said
    if able:
        more = f"({optional(between)} call)*" if parallel and between is not None else ""
        lines += [f"calls: {optional(first)} call {more} {optional(last)}",
                  "call: " + " | ".join(f"call{i}" for i in range(len(able)))]
        for i, tool in enumerate(able):
            lines += call(f"call{i}", tool)
        if opener:
            before = f"({without(*banned)})" if choice == "auto" and answer is None else GAP
            lines.append(f"BEFORE: {before} {literal(opener)}")
        body = "BEFORE calls" if opener else "calls"
        body = f"({said} | {body})" if choice == "auto" else body
    start = body
    if reasoning:
        lines.append(f"THOUGHT: {thought(reasoning, inside)}" + ("" if opener and answer is None else f" {GAP}"))
        start = f"THOUGHT {body}" if inside else f"THOUGHT? {body}"
    return Grammar("lark", "\n".join([f"start: {start}", *lines]) + "\n")


def json_call(before: str, after: str, name: str, tool: Tool) -> list[str]:
    """The rules of a call that is JSON between two texts."""
    return [f"{name}: {literal(before)} {name}_json {optional(after)}", f"{name}_json: {json_rule(arguments(tool))}"]


def optional(text: str) -> str:
    """A literal, or nothing."""
    return literal(text) if text else ""
