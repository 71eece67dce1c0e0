"""Guesses from what followed the same words before, in prompt or answer: for any model, and free to make."""
from __future__ import annotations

from collections.abc import Iterable

SIZES = (5, 3, 2)
"""Lengths of endings that are looked for, longest first"""


class Ngrams:
    """The tokens of one sequence, and for every ending of these lengths the place after its last occurrence but now."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        for token in tokens:
            at = len(self.tokens)
            for size in SIZES:
                if size <= at:
                    self._after[tuple(self.tokens[at - size :])] = at
            self.tokens.append(token)

    def guess(self, count: int) -> tuple[int, tuple[int, ...]]:
        """(length of the ending that was found, up to `count` tokens that followed it), or (0, ()).

        Where what followed runs into the ending itself, it repeats: a loop is guessed to go on.
        """
        end = len(self.tokens)
        for size in SIZES:
            at = self._after.get(tuple(self.tokens[end - size :])) if size <= end else None
            if at is not None:
                return size, tuple(self.tokens[at + i % (end - at)] for i in range(count))
        return 0, ()
