"""What every dialect of tool calls gives and takes."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from blackwell_infer.types import Grammar, Tool


class Named(msgspec.Struct, frozen=True):
    """The choice of one tool: the answer must call it."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | Named


class CallStart(msgspec.Struct, frozen=True):
    """A call begins. `index` counts the calls of an answer from 0."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """The next piece of a call's arguments; together they are JSON."""

    index: int
    delta: str


Piece = str | CallStart | CallArguments
"""A piece of text outside of calls, or of a call."""


class Parser(Protocol):
    """Reads one answer, without its reasoning, as it comes.

    However the text is cut, the pieces together say the same. A marker that may have begun is held back. What looks
    like a call but has no readable head is text. A call's arguments are passed on as they come, so of an answer that
    breaks off within a call they are the beginning.
    """

    def push(self, text: str) -> tuple[Piece, ...]: ...
    def flush(self) -> tuple[Piece, ...]: ...


class Dialect(Protocol):
    """A module of this package. `MARKERS`: texts of control tokens that the parser must see."""

    @property
    def MARKERS(self) -> tuple[str, ...]: ...

    def claims(self, template_source: str) -> bool:
        """Whether a chat template teaches this dialect."""
        ...

    def grammar(
        self, tools: Sequence[Tool], choice: ToolChoice, parallel: bool, reasoning: tuple[str, str] | None,
        inside: bool, answer: Grammar | None = None,
    ) -> Grammar | None:
        """The grammar of a whole answer, reasoning included; None without tools.

        `reasoning` holds its markers, `inside` says that the prompt has opened it. "auto": text, or text and then
        calls; "none": text without a call; "required" and a name: calls alone. With `parallel` off, one call at most.
        With `answer`, which is JSON, that takes the place of text: "auto" is then either such an answer, or calls.
        RequestError: a schema that cannot be enforced, or a name that no tool has.
        """
        ...

    def Parser(self, tools: Sequence[Tool]) -> Parser:
        """A parser of one answer; `tools` tells the types of arguments that are written as plain text."""
        ...
