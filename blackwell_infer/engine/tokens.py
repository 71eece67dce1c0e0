"""An append-only list of token ids that is a value: appending gives a new one and leaves the old as it was."""
from __future__ import annotations

from collections.abc import Iterator


class TokenLog:
    """Tokens in order. `append` takes constant time while it extends the newest log of a line, else it copies.

    Logs of one line share their storage, of which each sees its own beginning, so keeping old ones costs nothing.
    """

    __slots__ = ("_items", "_length")

    def __init__(self, items: tuple[int, ...] = ()) -> None:
        self._items = list(items)
        self._length = len(self._items)

    def append(self, token: int) -> TokenLog:
        """A log with one more token."""
        items = self._items if self._length == len(self._items) else self._items[: self._length]
        items.append(token)
        longer = TokenLog.__new__(TokenLog)
        longer._items, longer._length = items, self._length + 1
        return longer

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(self._items[: self._length])

    def part(self, first: int, last: int) -> tuple[int, ...]:
        """Tokens first..last-1."""
        return tuple(self._items[first : min(last, self._length)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenLog) and self.part(0, len(self)) == other.part(0, len(other))

    def __hash__(self) -> int:
        return hash(self.part(0, self._length))

    def __repr__(self) -> str:
        return f"TokenLog({self.part(0, self._length)})"
