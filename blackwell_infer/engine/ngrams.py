"""Guesses from what followed the same words before, in prompt or answer: for any model, and free to make."""
from __future__ import annotations

from collections.abc import Iterable

SIZES = (5, 3, 2)
"""Lengths of endings that are looked for, longest first"""
ENTRIES = 1 << 17
"""Endings that are kept; when there are more, all are forgotten: some 16 MB per sequence"""


class Ngrams:
    """The tokens of one sequence, and for every ending of these lengths, by its hash, the place after its last
    occurrence but now."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._after: dict[int, int] = {}

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        if len(self._after) > ENTRIES:
            self._after.clear()
        for token in tokens:
            at = len(self.tokens)
            for size in SIZES:
                if size <= at:
                    self._after[hash(tuple(self.tokens[at - size :]))] = at
            self.tokens.append(token)

    def guess(self, count: int) -> tuple[int, tuple[int, ...]]:
        """(length of the ending that was found, up to `count` tokens that followed it), or (0, ()).

        Where what followed runs into the ending itself, it repeats: a loop is guessed to go on.
        """
        end = len(self.tokens)
        for size in SIZES:
            at = self._after.get(hash(tuple(self.tokens[end - size :]))) if size <= end else None
            if at is not None:
                return size, tuple(self.tokens[at + i % (end - at)] for i in range(count))
        return 0, ()
