"""Qwen 2.5, Qwen3, QwQ and Hermes: a JSON object between two markers.

    <tool_call>
    {"name": NAME, "arguments": {...}}
    </tool_call>
"""
from __future__ import annotations

from collections.abc import Sequence

from blackwell_infer.text.tools.calls import ToolChoice
from blackwell_infer.text.tools.reader import Reader, Steps, quoted
from blackwell_infer.text.tools.rules import frame, json_call
from blackwell_infer.types import Grammar, Tool

BEGIN, END = "<tool_call>", "</tool_call>"
MARKERS = (BEGIN, END)


def claims(template_source: str) -> bool:
    return BEGIN in template_source and "<function=" not in template_source and '"arguments"' in template_source


def grammar(
    tools: Sequence[Tool], choice: ToolChoice, parallel: bool, reasoning: tuple[str, str] | None, inside: bool,
    answer: Grammar | None = None,
) -> Grammar | None:
    return frame(tools, choice, parallel, reasoning, inside, answer, opener=BEGIN, call=call, between="\n" + BEGIN)


def call(name: str, tool: Tool) -> list[str]:
    """The rules of a call behind its marker."""
    return json_call(f'\n{{"name": {quoted(tool.name)}, "arguments": ', "}\n" + END, name, tool)


class Parser(Reader):
    """See `calls.Parser`."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__()

    def run(self) -> Steps:
        while (yield from self.text((BEGIN,))) is not None:
            back = self.at
            name = yield from self.head('"arguments"', '"parameters"')
            if name is None:
                self.at = back
                self.say(BEGIN)
                continue
            self.start(name)
            if (yield from self.value()):
                yield from self.skip(END)
