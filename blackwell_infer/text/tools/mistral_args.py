"""Mistral from its tokenizer v11 on: a marker before each call, and one before its arguments.

    [TOOL_CALLS]NAME[ARGS]{...}
"""
from __future__ import annotations

from collections.abc import Sequence

from blackwell_infer.text.tools.calls import ToolChoice
from blackwell_infer.text.tools.mistral import BEGIN, Parser
from blackwell_infer.text.tools.rules import frame, json_call
from blackwell_infer.types import Grammar, Tool

ARGS = "[ARGS]"
MARKERS = (BEGIN, ARGS, "[CALL_ID]")


def claims(template_source: str) -> bool:
    return BEGIN in template_source and ARGS in template_source


def grammar(
    tools: Sequence[Tool], choice: ToolChoice, parallel: bool, reasoning: tuple[str, str] | None, inside: bool,
    answer: Grammar | None = None,
) -> Grammar | None:
    return frame(tools, choice, parallel, reasoning, inside, answer, opener=BEGIN, call=call, between=BEGIN,
                 taboo=(ARGS,))


def call(name: str, tool: Tool) -> list[str]:
    """The rules of a call behind its marker."""
    return json_call(f"{tool.name}{ARGS}", "", name, tool)


__all__ = ["MARKERS", "Parser", "claims", "grammar"]
