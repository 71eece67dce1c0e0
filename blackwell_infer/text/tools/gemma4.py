"""Gemma 4: arguments in a notation of its own, with bare keys and a control token for quotes.

    <|tool_call>call:NAME{key:1,text:<|"|>words<|"|>,list:[true,null]}<tool_call|>
"""
from __future__ import annotations

from collections.abc import Sequence

from blackwell_infer.text.stream import overlap
from blackwell_infer.text.tools.arguments import read
from blackwell_infer.text.tools.calls import ToolChoice
from blackwell_infer.text.tools.gemma4_rules import QUOTE, call_rules
from blackwell_infer.text.tools.reader import LONGEST_NAME, SPACE, Found, Reader, Steps, quoted
from blackwell_infer.text.tools.rules import frame
from blackwell_infer.types import Grammar, Tool

BEGIN, END = "<|tool_call>", "<tool_call|>"
MARKERS = (BEGIN, END, QUOTE)
DEPTH = 64
"""Most values within each other; what is deeper is left out"""


def claims(template_source: str) -> bool:
    return BEGIN in template_source and QUOTE in template_source


def grammar(
    tools: Sequence[Tool], choice: ToolChoice, parallel: bool, reasoning: tuple[str, str] | None, inside: bool,
    answer: Grammar | None = None,
) -> Grammar | None:
    return frame(tools, choice, parallel, reasoning, inside, answer, opener=BEGIN, between=BEGIN,
                 call=lambda name, tool: call_rules(name, tool, f"call:{tool.name}", END))


class Parser(Reader):
    """See `calls.Parser`."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__()

    def run(self) -> Steps:
        while (yield from self.text((BEGIN,))) is not None:
            back = self.at
            yield from self.spaces()
            name = (yield from self.until("{", LONGEST_NAME)) if (yield from self.literal("call:")) else None
            if name is None or not name.strip() or "<" in name:
                self.at = back
                self.say(BEGIN)
                continue
            self.start(name.strip())
            self.at -= 1
            yield from self._value(0)
            yield from self.skip(END)

    def _value(self, depth: int) -> Found:
        """Pass on one value as JSON; False if it is none or the text ends in it."""
        yield from self.spaces()
        self.drop()
        if depth > DEPTH or not (yield from self.more()):
            return False
        if self.held[0] in "{[":
            return (yield from self._several(self.held[0], depth))
        if (yield from self.literal(QUOTE)):
            return (yield from self._text())
        self.at = 0
        while (yield from self.more()) and self.held[self.at] not in ",]}<":
            self.at += 1
        bare = self.held[:self.at].strip(SPACE)
        self.argue(read(bare, "json") if bare else "")
        return bool(bare)

    def _several(self, open: str, depth: int) -> Found:
        """An object or a list."""
        close = "}" if open == "{" else "]"
        self.at = 1
        self.argue(open)
        first = True
        while True:
            yield from self.spaces()
            if (yield from self.literal(close)):
                self.argue(close)
                return True
            if not first and not (yield from self.words(",")):
                return False
            separator = "" if first else ", "
            if open == "{":
                key = yield from self.until(":", LONGEST_NAME)
                if key is None:
                    return False
                separator += quoted(key.replace(QUOTE, "").strip(SPACE)) + ": "
            self.argue(separator)
            first = False
            if not (yield from self._value(depth + 1)):
                return False

    def _text(self) -> Found:
        """What stands between two marks of quotation, as it comes."""
        self.argue('"')
        while True:
            self.drop()
            end = self.held.find(QUOTE)
            cut = end if end >= 0 else len(self.held) - (0 if self.ended else overlap(self.held, QUOTE))
            self.argue(quoted(self.held[:cut])[1:-1])
            self.at = cut
            if end >= 0:
                self.at += len(QUOTE)
                self.argue('"')
                return True
            if self.ended:
                return False
            yield
