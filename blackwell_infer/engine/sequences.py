"""What the scheduler plans with, as plain data: limits, sequences, the rows of a step, and what a step made."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from blackwell_infer.engine.tokens import TokenLog
from blackwell_infer.kv.prefix import Key, Prefix
from blackwell_infer.kv.spec import PAGE

UNKNOWN = -1
"""Stands for a token that was sampled and that the host has not read yet."""

Finish = Literal["stop", "length", "error", "scored"]


class Limits(msgspec.Struct, frozen=True):
    """What one step may hold: rows, tokens, tokens of scored texts (their logits take memory), pages of the cache.

    `reuse`: pages are cached and shared. `stride` is 1, or for models with recurrent layers the tokens between places
    where a state may be kept, at which prompts are cut too; `states` are the slots for such states.

    A step that brings guesses has at most `checked` tokens. Rows that sample take pages for `reach` tokens beyond, if
    there are free ones and nobody waits: guesses are made there.

    Besides `batch` sequences, at most `queue` may wait; None is any number.
    """

    batch: int
    step_tokens: int
    score_tokens: int
    pages: int
    context: int
    reuse: bool = False
    stride: int = 1
    states: int = 0
    checked: int = 0
    reach: int = 0
    queue: int | None = None

    @property
    def spares(self) -> int:
        """Slots of recurrent states beside one per sequence: as many as guesses of a step may write."""
        return max(self.checked - 1, 0)

    @property
    def homes(self) -> int:
        """Slots of recurrent states of all sequences."""
        return self.batch + self.spares


class Sequence(msgspec.Struct, frozen=True, kw_only=True):
    """One answer under way. Ids grow with arrival; of higher `priority` come first, and equal ones in order of arrival
    (`rank`). `cached` tokens of prompt and answer have keys in `pages`.

    `limit` is the most answer tokens; `score` marks a text whose tokens are only looked at. `slot` is the sequence's
    own number below `Limits.batch` while it runs. `ahead` tokens follow the answer that no commit has told yet.
    `home` is the slot below `Limits.homes` where its recurrent state lies. While a step checks guesses of it, `spares`
    are the slots of `Row.spares`; nothing else counts those guesses.

    Its first pages are those of `keys` in the prefix cache; `moved` if some of them are new to the runner. `state` is
    the slot for kept states that its next row continues (-1: its own state); `fresh` are (pages, slot) of states that a
    step under way keeps, `trail` the pages before the last state that was kept of its answer, `branch` the tokens
    before a place where one is worth a slot because another text went the same way.
    """

    id: int
    prompt: tuple[int, ...]
    limit: int
    stop_ids: frozenset[int] = frozenset()
    score: bool = False
    answer: TokenLog = msgspec.field(default_factory=TokenLog)
    cached: int = 0
    pages: tuple[int, ...] = ()
    slot: int = -1
    ahead: int = 0
    keys: tuple[Key, ...] = ()
    moved: bool = False
    state: int = -1
    fresh: tuple[tuple[int, int], ...] = ()
    trail: int = 0
    branch: int = 0
    home: int = -1
    spares: tuple[int, ...] = ()
    priority: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """What goes first is smaller."""
        return -self.priority, self.id

    @property
    def length(self) -> int:
        """Tokens of prompt and answer, those ahead included."""
        return len(self.prompt) + len(self.answer) + self.ahead

    @property
    def full(self) -> bool:
        """Whether the answer has as many tokens as it may, those ahead included."""
        return len(self.answer) + self.ahead >= self.limit

    @property
    def pending(self) -> int:
        """Tokens without keys and values yet: 1 while it decodes."""
        return self.length - self.cached

    def tokens(self, first: int, last: int) -> tuple[int, ...]:
        """Tokens first..last-1 of prompt and answer, `UNKNOWN` for those ahead."""
        n = len(self.prompt)
        known = self.prompt[first:last] + (self.answer.part(max(first - n, 0), last - n) if last > n else ())
        return known + (UNKNOWN,) * (last - first - len(known))


class State(msgspec.Struct, frozen=True):
    """Everything the scheduler knows. Both tuples are in order of rank; `free` has bit p set if page p is free."""

    free: int
    waiting: tuple[Sequence, ...] = ()
    running: tuple[Sequence, ...] = ()
    prefix: Prefix = Prefix()
    reuse: bool = False


class Row(msgspec.Struct, frozen=True):
    """One sequence's part of a step: `tokens` at positions from `start`, and what is wanted of them.

    `pages` is the whole block table, whose last `new_pages` were taken for this step; `moved` if others changed too.
    `restart` marks the first row after an admission: what the runner knows of the slot is out of date. The row goes on
    from its slot's state, or the kept one `state`; `snapshots` are (index of a token, slot that keeps the state then).

    The last `guesses` tokens are guesses: a token is sampled after each of them, too. The recurrent state after the
    last token that is none goes to the slot `home`, those after guesses to `spares`, unless a snapshot is taken there.
    """

    id: int
    slot: int
    tokens: tuple[int, ...]
    start: int
    pages: tuple[int, ...]
    new_pages: int
    restart: bool
    samples: bool
    scores: bool
    moved: bool = False
    state: int = -1
    snapshots: tuple[tuple[int, int], ...] = ()
    home: int = 0
    guesses: int = 0
    spares: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)

    @property
    def sampled(self) -> int:
        """How many tokens are sampled."""
        return self.samples * (1 + self.guesses)

    @property
    def guessed(self) -> tuple[int, ...]:
        """The guesses."""
        return self.tokens[len(self.tokens) - self.guesses :]


class Plan(msgspec.Struct, frozen=True):
    """The rows of a step, oldest sequence first, the ids of sequences that lose their pages before it, and the
    sequences that it admits. `free` and `prefix` are as they are once it began."""

    rows: tuple[Row, ...]
    preempted: tuple[int, ...] = ()
    admitted: tuple[Sequence, ...] = ()
    free: int = 0
    prefix: Prefix = Prefix()


class Emitted(msgspec.Struct, frozen=True):
    """What a step did for one sequence: a sampled token (-1: none could be chosen) or scored positions, and its end.

    `row` indexes `Plan.rows`; `sample` counts the tokens sampled before it. A row with guesses emits one for each
    token; `guessed`: it was a guess that holds.
    """

    id: int
    row: int
    sample: int
    token: int = -1
    finish: Finish | None = None
    guessed: bool = False


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


def mask(pages: Iterable[int]) -> int:
    """The set of pages as bits."""
    listed = list(pages)
    bits = bytearray(max(listed, default=0) // 8 + 1)
    for page in listed:
        bits[page >> 3] |= 1 << (page & 7)
    return int.from_bytes(bits, "little")
