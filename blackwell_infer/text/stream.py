"""From token ids to the pieces of text that a reader sees: detokenising, stop strings, reasoning apart from the answer.

All three hold state for one answer. What they return in total depends on the whole input only, never on how it was cut
into pushes.
"""
from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Literal

from blackwell_infer.errors import RequestError
from blackwell_infer.text.tokenizer import Tokenizer

_NEWLINES = "\r\n"
_UTF8_TAIL = 4
"""Bytes after which the state of a UTF-8 decoder no longer depends on what came before."""


class Detokenizer:
    """Turns ids into text one by one; each call costs time in proportion to the token's own bytes.

    The pushes and the flush together give what `ids` add to `prompt_ids` in `Tokenizer.decode(prompt_ids + ids)`: a
    leading space is dropped only where nothing stands before it, and a character begun in the prompt counts to the ids.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strip
        tail = b""
        first = len(prompt_ids)
        while first and len(tail) < _UTF8_TAIL + self._strip:
            first -= 1
            tail = tokenizer.piece(prompt_ids[first]) + tail
        self._feed(tail)

    def push(self, id: int) -> str:
        """The characters that this token completes, possibly none."""
        return self._feed(self._tokenizer.piece(id))

    def flush(self) -> str:
        """U+FFFD for a character that was begun and never completed, else nothing."""
        return self._decoder.decode(b"", final=True)

    def _feed(self, data: bytes) -> str:
        while self._strip and data:
            self._strip = self._strip - 1 if data.startswith(b" ") else 0
            data = data[1:] if data.startswith(b" ") else data
        return self._decoder.decode(data)


class StopScanner:
    """Cuts a text before the first stop string to be completed; of several completed at once, the longest.

    Only text that could still be the beginning of a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise RequestError("a stop string is empty; leave it out")
        self._stops = tuple(stops)
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown and whether a stop string was found; after that nothing more is shown."""
        if self._stopped:
            return "", True
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self._held, self._stopped = "", True
            return text[: min(found)[1]], True
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held


class ReasoningSplitter:
    """Separates reasoning between two markers from the answer after them.

    Reasoning opens only at the very start of an answer, or is open already (`inside`: the prompt ended with the opening
    marker), so an answer that talks about the markers stays whole. The markers and the newlines that touch them are
    dropped.
    """

    def __init__(self, open: str, close: str, inside: bool) -> None:
        self._open, self._close = open, close
        self._inside = inside
        self._stage: Literal["opening", "leading", "reasoning", "parting", "answer"] = "opening"
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """The reasoning and the answer text that are certain now."""
        self._held += text
        if self._stage == "opening":
            start = self._held.lstrip()
            if start.startswith(self._open):
                self._held, self._stage = start[len(self._open) :], "leading"
            elif not self._open.startswith(start):
                self._stage = "leading" if self._inside else "answer"
        if self._stage == "leading":
            self._held = self._held.lstrip(_NEWLINES)
            self._stage = "reasoning" if self._held else "leading"
        reasoning = self._take_reasoning() if self._stage == "reasoning" else ""
        if self._stage == "parting":
            self._held = self._held.lstrip(_NEWLINES)
            self._stage = "answer" if self._held else "parting"
        answer = ""
        if self._stage == "answer":
            answer, self._held = self._held, ""
        return reasoning, answer

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        if self._stage == "opening" and not self._inside:
            return "", held
        return (held.lstrip(_NEWLINES) if self._stage == "opening" else held).rstrip(_NEWLINES), ""

    def _take_reasoning(self) -> str:
        end = self._held.find(self._close)
        if end >= 0:
            taken, self._held, self._stage = self._held[:end], self._held[end + len(self._close) :], "parting"
            return taken.rstrip(_NEWLINES)
        taken = self._held[: len(self._held) - overlap(self._held, self._close)].rstrip(_NEWLINES)
        self._held = self._held[len(taken) :]
        return taken


def overlap(text: str, marker: str) -> int:
    """Length of the longest proper beginning of `marker` that `text` ends with."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:n])), 0)
