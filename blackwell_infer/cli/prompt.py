"""What the user types: entries of one or more lines, from a terminal with history or from any other standard input."""
from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blackwell_infer.log import logger

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

FENCE = '"""'
Read = Callable[[str], str]
"""Reads one line after showing a prompt; EOFError at the end, KeyboardInterrupt on Ctrl-C."""


def entry(read: Read) -> str:
    """One entry. A backslash at the end of a line continues it; lines between two fences (three quotes) are one entry.

    A missing closing fence ends with the input.
    """
    line = read("> ")
    if line.startswith(FENCE):
        return fenced(line[len(FENCE):], read)
    while line.endswith("\\"):
        line = line[:-1] + "\n" + read(". ")
    return line


def fenced(line: str, read: Read) -> str:
    """The text up to the closing fence."""
    lines = []
    while not line.rstrip().endswith(FENCE):
        lines.append(line)
        try:
            line = read(". ")
        except EOFError:
            return "\n".join(lines)
    lines.append(line.rstrip()[: -len(FENCE)])
    return "\n".join(lines).strip("\n")


def piped(prompt: str) -> str:
    """Read a line of a standard input that is no terminal; nothing is shown."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def terminal(history: Path, toolbar: Callable[[], str]) -> Read:
    """Line editing with history and a status line; Alt-Enter puts a new line into the entry."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    store: FileHistory | InMemoryHistory
    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        history.touch(mode=0o600)
        store = FileHistory(str(history))
    except OSError as error:
        logger.warning("history is not kept: %s: %s", history, error.strerror)
        store = InMemoryHistory()
    session: PromptSession[str] = PromptSession(history=store, key_bindings=keys(), bottom_toolbar=toolbar)

    def read(prompt: str) -> str:
        return session.prompt(prompt)

    return read


def keys() -> KeyBindings:
    """Alt-Enter inserts a line break instead of sending; Ctrl-C discards what has been typed, if there is anything."""
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-c")
    def _(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return bindings
