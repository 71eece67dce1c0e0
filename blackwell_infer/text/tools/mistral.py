"""Mistral up to its tokenizer v7: all calls in one JSON list.

    [TOOL_CALLS][{"name": NAME, "arguments": {...}, "id": "..."}, ...]

Ids are 9 letters and digits, which the templates insist on; those that a model writes come too late to be used.
"""
from __future__ import annotations

from collections.abc import Sequence

from blackwell_infer.text.tools.calls import ToolChoice
from blackwell_infer.text.tools.reader import Found, Reader, Steps, quoted
from blackwell_infer.text.tools.rules import frame, json_call
from blackwell_infer.types import Grammar, Tool

BEGIN = "[TOOL_CALLS]"
MARKERS = (BEGIN,)
ID_LENGTH = 9


def claims(template_source: str) -> bool:
    return BEGIN in template_source and "[ARGS]" not in template_source


def grammar(
    tools: Sequence[Tool], choice: ToolChoice, parallel: bool, reasoning: tuple[str, str] | None, inside: bool,
    answer: Grammar | None = None,
) -> Grammar | None:
    return frame(tools, choice, parallel, reasoning, inside, answer, opener=BEGIN, call=call, first="[",
                 between=", ", last="]")


def call(name: str, tool: Tool) -> list[str]:
    """The rules of an entry of the list."""
    head, *rest = json_call(f'{{"name": {quoted(tool.name)}, "arguments": ', "", name, tool)
    return [f'{head} (", \\"id\\": \\"" /[a-zA-Z0-9]{{{ID_LENGTH}}}/ "\\"")? "}}"', *rest]


class Parser(Reader):
    """See `calls.Parser`. Reads the form of `mistral_args` too."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__("", ID_LENGTH)

    def run(self) -> Steps:
        while (yield from self.text((BEGIN,))) is not None:
            back = self.at
            yield from self.spaces()
            listed = yield from self.begins("[")
            if not (yield from self._list() if listed else self._named()):
                self.at = back
                self.say(BEGIN)

    def _list(self) -> Found:
        """A list of calls; False where not even one begins."""
        if not (yield from self.literal("[")):
            return False
        some = False
        while True:
            back = self.at
            name = yield from self.head('"arguments"', '"parameters"')
            if name is None:
                self.at = back
                return some
            some = True
            self.start(name)
            if not (yield from self.value()):
                return True
            yield from self._rest()
            if not (yield from self.words(",")):
                yield from self.literal("]")
                return True

    def _rest(self) -> Steps:
        """What stands in an entry behind the arguments."""
        while (yield from self.words(",")):
            yield from self.name()
            yield from self.words(":")
            yield from self.name()
        yield from self.literal("}")

    def _named(self) -> Found:
        """`NAME[ARGS]{...}`, the name perhaps with `[CALL_ID]` and an id behind it."""
        name = yield from self.until("[ARGS]", 256)
        name, _, id = (name or "").partition("[CALL_ID]")
        yield from self.spaces()
        if not name.strip() or "[" in name or "\n" in name or not (yield from self.begins("{")):
            return False
        self.start(name.strip(), id)
        yield from self.value()
        return True
