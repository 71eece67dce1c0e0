"""Where an answer appears: text on standard output as it comes, everything beside it dimmed or on standard error."""
from __future__ import annotations

import sys
from typing import TextIO

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def one_line(error: object) -> str:
    """An error as the command line prints it."""
    return f"bwinfer: {' '.join(str(error).split())}"


class Screen:
    """Writes answers and notes, flushing every piece. On a terminal control characters of a model are dropped."""

    def __init__(self, out: TextIO | None = None, aside: TextIO | None = None, reasoning: bool = True) -> None:
        self.out = out if out is not None else sys.stdout
        self.aside = aside if aside is not None else sys.stderr
        self.reasoning = reasoning
        self.terminal = self.out.isatty()
        self.thinking = False
        self.column = 0

    def answer(self, text: str) -> None:
        """A piece of the answer."""
        if text:
            self.settle()
            self.put(self.out, text)

    def thought(self, text: str) -> None:
        """A piece of the reasoning: dimmed before the answer on a terminal, else on standard error."""
        if not text or not self.reasoning:
            return
        target = self.out if self.terminal else self.aside
        if not self.thinking:
            self.thinking = True
            if target.isatty():
                target.write(DIM)
        self.put(target, text)

    def settle(self) -> None:
        """End the reasoning, if any: the answer starts on a line of its own."""
        if self.thinking:
            self.thinking = False
            target = self.out if self.terminal else self.aside
            target.write((PLAIN if target.isatty() else "") + "\n\n")
            target.flush()
            self.column = 0

    def end(self) -> None:
        """End the answer's last line, unless it has ended."""
        self.settle()
        if self.column:
            self.put(self.out, "\n")

    def note(self, text: str) -> None:
        """A line beside the answer, on standard error."""
        self.end()
        self.aside.write(f"{DIM}{text}{PLAIN}\n" if self.aside.isatty() else text + "\n")
        self.aside.flush()

    def put(self, target: TextIO, text: str) -> None:
        """Write and flush; keeps track of whether the answer's line has ended."""
        shown = text.translate(CONTROLS) if target.isatty() else text
        target.write(shown)
        target.flush()
        if target is self.out and shown:
            self.column = 0 if shown.endswith("\n") else 1
