"""Llama 3.1 to 3.3: the answer is one JSON object, or several that are parted by semicolons.

    {"name": NAME, "parameters": {...}}

`<|python_tag|>` may stand before it. This is a call only where the answer begins so, or behind that tag.
"""
from __future__ import annotations

from collections.abc import Sequence

from blackwell_infer.text.tools.calls import ToolChoice
from blackwell_infer.text.tools.reader import Found, Reader, Steps, quoted
from blackwell_infer.text.tools.rules import frame, json_call
from blackwell_infer.types import Grammar, Tool

TAG = "<|python_tag|>"
MARKERS = (TAG,)


def claims(template_source: str) -> bool:
    return '{"name": function name, "parameters"' in template_source


def grammar(
    tools: Sequence[Tool], choice: ToolChoice, parallel: bool, reasoning: tuple[str, str] | None, inside: bool,
    answer: Grammar | None = None,
) -> Grammar | None:
    # The templates know a single call per turn, so there are never two.
    return frame(tools, choice, parallel, reasoning, inside, answer, opener="", call=call, taboo=(TAG,),
                 not_text=r'\s*\{\s*"name"(?s:.*)')


def call(name: str, tool: Tool) -> list[str]:
    """The rules of a call."""
    return json_call(f'{{"name": {quoted(tool.name)}, "parameters": ', "}", name, tool)


class Parser(Reader):
    """See `calls.Parser`."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__()

    def run(self) -> Steps:
        yield from self.spaces()
        if (yield from self.begins("{")):
            yield from self._calls("")
        else:
            self.at = 0
        while (yield from self.text(MARKERS)) is not None:
            yield from self._calls(TAG)

    def _calls(self, tag: str) -> Steps:
        """Calls that stand here; where none does, what was read is text again."""
        back = self.at if tag else 0
        if not (yield from self._call()):
            self.at = back
            self.say(tag)
            return
        again = True
        while again:
            self.drop()
            again = (yield from self.words(";")) and (yield from self._call())
            self.at = self.at if again else 0

    def _call(self) -> Found:
        name = yield from self.head('"parameters"', '"arguments"')
        if name is None:
            return False
        self.start(name)
        if (yield from self.value()):
            yield from self.words("}")
        return True
