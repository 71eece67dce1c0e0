"""DeepSeek V3.1: JSON between markers.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
"""
from __future__ import annotations

from collections.abc import Sequence

from blackwell_infer.text.tools.calls import ToolChoice
from blackwell_infer.text.tools.deepseek import BEGIN, CALL, CALL_END, END, MARKERS, SEPARATOR, Parser
from blackwell_infer.text.tools.rules import frame, json_call
from blackwell_infer.types import Grammar, Tool


def claims(template_source: str) -> bool:
    return BEGIN in template_source and "```json" not in template_source


def grammar(
    tools: Sequence[Tool], choice: ToolChoice, parallel: bool, reasoning: tuple[str, str] | None, inside: bool,
    answer: Grammar | None = None,
) -> Grammar | None:
    return frame(tools, choice, parallel, reasoning, inside, answer, opener=BEGIN, call=call, between="", last=END,
                 taboo=(CALL,))


def call(name: str, tool: Tool) -> list[str]:
    """The rules of a call."""
    return json_call(f"{CALL}{tool.name}{SEPARATOR}", CALL_END, name, tool)


__all__ = ["MARKERS", "Parser", "claims", "grammar"]
