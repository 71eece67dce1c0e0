"""A parser written as a generator: it yields where it needs more text, so it cannot depend on how the text is cut."""
from __future__ import annotations

import json
import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence

from blackwell_infer.text.stream import overlap
from blackwell_infer.text.tools.calls import CallArguments, CallStart, Piece

Steps = Generator[None, None, None]
Found = Generator[None, None, bool]
Text = Generator[None, None, str | None]

SPACE = " \t\r\n"
LONGEST_NAME = 256
"""Characters after which a name that has not ended is none."""


class Reader(ABC):
    """Text that has come and is not used yet (`held`, from `at` on) and the pieces made so far.

    A subclass writes `run`, which returns when the text has ended. What is read moves `at`; where a call turns out to
    be none, its parser puts `at` back, and the text is read again as text.
    """

    def __init__(self, prefix: str = "call_", letters: int = 24) -> None:
        self.held, self.at, self.ended, self.calls = "", 0, False, 0
        self._id = prefix, letters
        self._space = ""
        self._pieces: list[Piece] = []
        self._steps = self.run()

    @abstractmethod
    def run(self) -> Steps:
        """The whole parser."""

    def push(self, text: str) -> tuple[Piece, ...]:
        """The pieces that are certain with this text."""
        self.held += text
        next(self._steps, None)
        pieces, self._pieces = tuple(self._pieces), []
        return pieces

    def flush(self) -> tuple[Piece, ...]:
        """What was held back, at the end of the answer."""
        self.ended = True
        pieces = self.push("")
        rest, self._space = self._space, ""
        return (*pieces, rest) if rest and not self.calls else pieces

    def say(self, text: str) -> None:
        """Text outside of calls. Space waits: it is dropped where it touches a call."""
        body = text.rstrip(SPACE)
        if body:
            self._pieces.append(self._space + body)
            self._space = ""
        self._space += text[len(body):]

    def start(self, name: str, id: str = "") -> None:
        """A call begins; it gets an id if it has none."""
        prefix, letters = self._id
        made = prefix + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(letters))
        self._pieces.append(CallStart(self.calls, id or made, name))
        self._space = ""
        self.calls += 1

    def argue(self, delta: str) -> None:
        """More of the running call's arguments."""
        if delta:
            self._pieces.append(CallArguments(self.calls - 1, delta))

    def drop(self) -> None:
        """Forget the text before the place; positions kept elsewhere mean nothing after that."""
        self.held, self.at = self.held[self.at:], 0

    def text(self, markers: Sequence[str]) -> Text:
        """Say what comes before the first marker, and step over it; None where the text ends without one."""
        while True:
            self.drop()
            found = [(start, -len(marker), marker) for marker in markers if (start := self.held.find(marker)) >= 0]
            if found:
                start, _, marker = min(found)
                self.say(self.held[:start])
                self.at = start + len(marker)
                return marker
            keep = 0 if self.ended else max(overlap(self.held, marker) for marker in markers)
            self.at = len(self.held) - keep
            self.say(self.held[:self.at])
            if self.ended:
                return None
            yield

    def more(self) -> Found:
        """Whether there is a character at the place; waits for it."""
        while self.at >= len(self.held):
            if self.ended:
                return False
            yield
        return True

    def spaces(self) -> Steps:
        """Step over white space."""
        while (yield from self.more()) and self.held[self.at] in SPACE:
            self.at += 1

    def literal(self, *texts: str) -> Found:
        """Whether one of these texts stands here, none of which begins another; if so, step over it."""
        while True:
            rest = self.held[self.at:self.at + max(map(len, texts))]
            for text in texts:
                if rest.startswith(text):
                    self.at += len(text)
                    return True
            if self.ended or not any(text.startswith(rest) for text in texts):
                return False
            yield

    def words(self, *texts: str) -> Found:
        """Whether these texts stand here, one after the other, with white space around any of them."""
        for text in texts:
            yield from self.spaces()
            if not (yield from self.literal(text)):
                return False
        yield from self.spaces()
        return True

    def until(self, marker: str, limit: int) -> Text:
        """What stands before the marker, stepping over both; None if that is more than `limit` characters."""
        start = self.at
        while (end := self.held.find(marker, start, start + limit + len(marker))) < 0:
            if self.ended or len(self.held) - start > limit + len(marker):
                return None
            yield
        self.at = end + len(marker)
        return self.held[start:end]

    def name(self) -> Text:
        """A JSON string that is a name."""
        if not (yield from self.literal('"')):
            return None
        value = yield from self.until('"', LONGEST_NAME)
        return value or None

    def skip(self, marker: str) -> Steps:
        """Step over everything up to the end of the marker, or of the text."""
        while True:
            self.drop()
            end = self.held.find(marker)
            self.at = end + len(marker) if end >= 0 else len(self.held) - overlap(self.held, marker)
            if end >= 0 or self.ended:
                return
            yield

    def head(self, *keys: str) -> Text:
        """The name in `{"name": "...", "arguments": ` before an object; `keys` may stand for "arguments" (quoted)."""
        if not (yield from self.words("{", '"name"', ":")):
            return None
        name = yield from self.name()
        if name is None or not (yield from self.words(",")) or not (yield from self.literal(*keys)):
            return None
        return name if (yield from self.words(":")) and (yield from self.begins("{")) else None

    def begins(self, char: str) -> Found:
        """Whether this character stands here, without stepping over it."""
        return (yield from self.more()) and self.held[self.at] == char

    def value(self) -> Found:
        """Pass on a JSON object or list as arguments, as it comes; False if the text ends in it.

        Only strings and brackets are looked at: whether it is JSON is for whoever enforced a grammar.
        """
        depth, inside, escaped = 0, False, False
        while True:
            self.drop()
            while self.at < len(self.held):
                char = self.held[self.at]
                self.at += 1
                if escaped:
                    escaped = False
                elif inside:
                    escaped, inside = char == "\\", char != '"'
                elif char == '"':
                    inside = True
                elif char in "{[":
                    depth += 1
                elif char in "}]":
                    depth -= 1
                    if depth == 0:
                        self.argue(self.held[:self.at])
                        return True
            self.argue(self.held[:self.at])
            if self.ended:
                return False
            yield


def quoted(text: str) -> str:
    """JSON of a text, as chat templates write it."""
    return json.dumps(text, ensure_ascii=False)
