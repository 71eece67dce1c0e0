"""A budget of tokens for reasoning: once it is spent, the closing marker is forced, and the answer goes on from there.

Nothing before that place is changed: until then every token is as free as without a budget.
"""
from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from blackwell_infer.errors import RequestError
from blackwell_infer.text.stream import overlap
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import Matcher

CHARACTER = 4
"""Bytes of the longest character"""
KEPT = 64
"""Places that can be gone back to, more than a step has guesses"""


class Place(msgspec.Struct, frozen=True):
    """Where an answer stands. `tail` ends the text of its reasoning, or, while that may still open, is all of it.

    `spent` tokens are reasoning; `due` must come next. `thinks` is None while it is not known whether the answer
    begins with reasoning, and False for good once that is over.
    """

    thinks: bool | None
    tail: bytes = b""
    spent: int = 0
    due: tuple[int, ...] = ()


class Budget:
    """A `types.Matcher` that ends reasoning after `most` tokens, around the answer's own matcher, if it has one.

    `end` is forced then: the closing marker with the line breaks around it. A character that has begun is completed
    first, and of a marker that has begun only the rest is forced. A grammar that lets no reasoning end here, which only
    one about the whole answer can be, goes first.
    """

    def __init__(self, tokenizer: Tokenizer, markers: tuple[str, str], end: str, most: int, inside: bool,
                 inner: Matcher | None = None) -> None:
        self._tokenizer, self._most, self._inner = tokenizer, most, inner
        self._open, self._close = (marker.encode() for marker in markers)
        self._end = end.encode()
        if self._spelled(self._close) is None:
            raise RequestError(f"thinking_budget: this model's vocabulary cannot write {markers[1]!r}; leave it out")
        self._places = [self._counted(Place(True), 0) if inside else Place(None)]

    @property
    def ended(self) -> bool:
        return self._inner is not None and self._inner.ended

    def free(self, count: int) -> bool:
        here = self._places[-1]
        if self._inner is not None and not self._inner.free(count):
            return False
        return here.thinks is False or count <= self._most - here.spent

    def mask(self, out: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        if self._inner is None:
            out[:] = 0xFFFFFFFF
        else:
            self._inner.mask(out)
        due = self._places[-1].due[:1]
        if due and out[due[0] // 32] >> np.uint32(due[0] % 32) & 1:
            out[:] = 0
            out[due[0] // 32] = np.uint32(1 << due[0] % 32)

    def forced(self) -> tuple[int, ...]:
        due = self._places[-1].due
        if self._inner is None:
            return due
        if not due:
            return self._inner.forced()
        fitting = self._inner.accept(due)
        self._inner.rollback(fitting)
        return due[:fitting] or self._inner.forced()

    def accept(self, tokens: tuple[int, ...]) -> int:
        taken = 0
        for token in tokens:
            due = self._places[-1].due
            if due and token != due[0] and self._fits(due[0]):
                break
            if self._inner is not None and self._inner.accept((token,)) != 1:
                break
            self._places.append(self._after(self._places[-1], token))
            taken += 1
        if len(self._places) > 2 * KEPT + len(tokens):
            del self._places[: -KEPT - len(tokens)]
        return taken

    def rollback(self, count: int) -> None:
        del self._places[len(self._places) - count :]
        if self._inner is not None:
            self._inner.rollback(count)

    def _fits(self, token: int) -> bool:
        """Whether the answer's own grammar goes on with this token."""
        if self._inner is None:
            return True
        fits = self._inner.accept((token,))
        self._inner.rollback(fits)
        return fits == 1

    def _after(self, here: Place, token: int) -> Place:
        if here.thinks is False:
            return here
        tail = here.tail + self._tokenizer.piece(token)
        if here.due[:1] == (token,):
            return Place(True, tail, here.spent, here.due[1:]) if here.due[1:] else Place(False)
        if here.thinks:
            return self._counted(Place(True, tail, here.spent), 1)
        start = tail.lstrip()
        if start.startswith(self._open):
            return self._counted(Place(True, start[len(self._open) :]), 0)
        return Place(None, tail) if self._open.startswith(start) else Place(False)

    def _counted(self, here: Place, more: int) -> Place:
        """A place in reasoning after `more` tokens of it."""
        if self._close in here.tail:
            return Place(False)
        tail, spent = here.tail[-max(len(self._close) - 1, CHARACTER) :], here.spent + more
        late = spent - self._most
        if late < 0 or (late < CHARACTER - 1 and half_character(tail)):
            return Place(True, tail, spent)
        return Place(True, tail, spent, self._due(tail))

    def _due(self, tail: bytes) -> tuple[int, ...]:
        """The tokens of the end, where the text before it ends so."""
        begun = overlap(tail.decode("latin-1"), self._close.decode("latin-1"))
        after = self._end[self._end.index(self._close) :]
        end = after[begun:] if begun else after if tail.endswith(b"\n") else self._end
        found = self._spelled(end) or self._spelled(after) or self._spelled(self._close)
        assert found is not None
        return found

    def _spelled(self, text: bytes) -> tuple[int, ...] | None:
        """Tokens whose text, as the reader of an answer sees it, is this."""
        found = self._tokenizer.spell(text)
        return None if found is None or b"".join(map(self._tokenizer.piece, found)) != text else tuple(found)


def half_character(tail: bytes) -> bool:
    """Whether the bytes end within a character of UTF-8."""
    for i, byte in enumerate(reversed(tail[1 - CHARACTER :])):
        if byte >= 0xC0:
            return (byte >= 0xE0) + (byte >= 0xF0) >= i
        if byte < 0x80:
            break
    return False
