"""DeepSeek V3 and R1: JSON in a block of code, between markers.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
    ```json
    {...}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>
"""
from __future__ import annotations

from collections.abc import Sequence

from blackwell_infer.text.tools.calls import ToolChoice
from blackwell_infer.text.tools.reader import LONGEST_NAME, Found, Reader, Steps, Text
from blackwell_infer.text.tools.rules import frame, json_call
from blackwell_infer.types import Grammar, Tool

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
MARKERS = (BEGIN, END, CALL, SEPARATOR, CALL_END)
BLOCK = "\n```json\n"


def claims(template_source: str) -> bool:
    return BEGIN in template_source and "```json" in template_source


def grammar(
    tools: Sequence[Tool], choice: ToolChoice, parallel: bool, reasoning: tuple[str, str] | None, inside: bool,
    answer: Grammar | None = None,
) -> Grammar | None:
    return frame(tools, choice, parallel, reasoning, inside, answer, opener=BEGIN, call=call, between="\n", last=END,
                 taboo=(CALL,))


def call(name: str, tool: Tool) -> list[str]:
    """The rules of a call."""
    return json_call(f"{CALL}function{SEPARATOR}{tool.name}{BLOCK}", f"\n```{CALL_END}", name, tool)


class Parser(Reader):
    """See `calls.Parser`. Reads the form of `deepseek_v31` too."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__()

    def run(self) -> Steps:
        while (yield from self.text((BEGIN,))) is not None:
            if not (yield from self._call()):
                self.say(BEGIN)
                continue
            while (yield from self._call()):
                pass
            yield from self.words(END)

    def _call(self) -> Found:
        """One call, and the space before it; False where none begins."""
        self.drop()
        name = yield from self._head()
        if name is None:
            self.at = 0
            return False
        self.start(name)
        if (yield from self.value()):
            yield from self.skip(CALL_END)
        return True

    def _head(self) -> Text:
        """The name, and everything up to the arguments."""
        yield from self.spaces()
        if not (yield from self.literal(CALL)):
            return None
        name = yield from self.until(SEPARATOR, LONGEST_NAME)
        if name is None:
            return None
        yield from self.spaces()
        if not (yield from self.begins("{")):
            name = yield from self.until("\n", LONGEST_NAME)
            if name is None or not (yield from self.words("```json")):
                return None
        return name.strip() if name.strip() and "<" not in name and (yield from self.begins("{")) else None
