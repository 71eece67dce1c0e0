"""Speculation: guesses for the sequences that run, as many as pay, and what became of them.

Guesses come from `ngrams` and from a model's own `head`; `scheduler.plan` gives them a place in the next step and
`commit` says which hold. How many are made follows from how many of their kind held and what steps cost.
None of it changes an answer.
"""
from __future__ import annotations

import random
from collections.abc import Sequence as Items

import msgspec

from blackwell_infer.engine.batch import Tables
from blackwell_infer.engine.guesses import MOST, Cost, Costs, Rates, depth
from blackwell_infer.engine.head import Guessing, Head
from blackwell_infer.engine.masks import Grammars
from blackwell_infer.engine.ngrams import Ngrams
from blackwell_infer.engine.sequences import Emitted, Limits, Plan, Row, Sequence, State

CATCH_UP = 4096
"""Tokens of a text that n-grams take in at once: a long prompt is not to hold up a step"""
HEAD = 0
"""The kind of a head's guesses; those of `Ngrams` have the length of the ending that was found"""
FORCED = -1
"""The kind of what a grammar leaves no choice about: sure to hold until seen otherwise, where one text has several
spellings in tokens"""


class Speculation(msgspec.Struct, frozen=True):
    """The settings, resolved: where guesses come from, the fewest and the most per step and row."""

    ngrams: bool
    head: bool
    least: int
    most: int
    forced: float | None = None
    """for measuring speed: so many of the guesses are taken to hold, drawn one by one, and answers mean nothing"""

    @property
    def guesses(self) -> int:
        """Most guesses of a row, 0 without a source."""
        return self.most if self.ngrams or self.head else 0

    def started(self, runner: Guessing | None) -> Speculator | None:
        """What an engine over a runner speculates with, if with anything."""
        head = Head(runner) if self.head and runner is not None else None
        return Speculator(self, head) if self.ngrams or head is not None else None


class Counts(msgspec.Struct, frozen=True):
    """Guesses that were checked and that held, by their place in the row."""

    drafted: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()

    def checked(self, guesses: int, held: int) -> Counts:
        """After a row with `guesses`, the first `held` of which hold."""
        return Counts(added(self.drafted, guesses), added(self.accepted, held))


def added(counts: tuple[int, ...], first: int) -> tuple[int, ...]:
    """One more at each of the first places."""
    longer = counts + (0,) * (first - len(counts))
    return tuple(n + (i < first) for i, n in enumerate(longer))


class Speculator:
    """Lives as long as its engine, on the engine's thread."""

    def __init__(self, settings: Speculation, head: Head | None) -> None:
        self.settings = settings
        self.head = head
        self.counts = Counts()
        self._rates: dict[int, Rates] = {FORCED: Rates((1.0,) * MOST)}
        self._costs = Costs()
        self._texts: dict[int, Ngrams] = {}
        self._headed: dict[int, tuple[int, ...]] = {}
        self._kinds: dict[int, int] = {}
        self._draws = random.Random(0)

    def read(self, plan: Plan, sampled: list[int]) -> list[int]:
        """What a step sampled; where guesses are forced to hold, what it would have sampled then."""
        rate = self.settings.forced
        return sampled if rate is None else forced(plan, sampled, rate, self._draws)

    def must_read(self, state: State, plan: Plan, limits: Limits, grammars: Grammars) -> bool:
        """Whether the step `plan`, which is under way, is to be read before the next is planned: a sequence in it has
        something to guess, or a grammar that may force something, or the head needs what the step made."""
        self._follow(state)
        rows = sum(s.pending == 1 and not s.score for s in state.running)
        if any(row.guesses for row in plan.rows) or (self.head is not None and any(map(fed, plan.rows))):
            return True
        if rows >= limits.checked:
            return False
        return self._head_count(rows) > 0 or grammars.concern(plan) or any(
            self._choose(s, rows, self._offers(s)) for s in state.running if s.ahead)

    def guesses(self, state: State, limits: Limits, grammars: Grammars) -> dict[int, tuple[int, ...]]:
        """For `scheduler.plan`, by sequence id: none that a grammar excludes."""
        self._follow(state)
        ready = [s for s in state.running if s.pending == 1 and not s.ahead and not s.score]
        if not ready or len(ready) >= limits.checked:
            return {}
        found = dict[int, tuple[int, ...]]()
        for s in ready:
            offers = [(kind, grammars.fitting(s.id, tokens)) for kind, tokens in self._offers(s)]
            offers.append((FORCED, grammars.forced(s.id)[: self.settings.most]))
            chosen = self._choose(s, len(ready), offers)
            if chosen:
                found[s.id] = chosen
        self._headed = {}
        return found

    def landed(self, plan: Plan, events: Items[Emitted], state: State, tables: Tables, limits: Limits,
               seconds: float) -> None:
        """A step was read and committed: `state` is what came of it, `seconds` what it took."""
        held: dict[int, int] = {}
        for event in events:
            held[event.row] = held.get(event.row, 0) + event.guessed
        rows = [row for row in plan.rows if row.samples]
        for i, row in enumerate(plan.rows):
            if row.guesses and i in held:
                kind = self._kinds.get(row.id, HEAD)
                self._rates[kind] = self._rates.get(kind, Rates()).checked(row.guesses, held[i])
                self.counts = self.counts.checked(row.guesses, held[i])
        tokens = sum(len(row.tokens) for row in plan.rows)
        if rows and tokens == sum(row.sampled for row in rows):
            self._costs = self._costs.measured(tokens, seconds)
        ready = sum(s.pending == 1 and not s.score for s in state.running)
        count = self._head_count(ready) if ready < limits.checked else 0
        if self.head is not None and (count or any(map(fed, plan.rows))):
            self._headed |= self.head.guess(plan, {s.id: s for s in state.running}, tables, count, limits.context)
        if self.head is not None and not count:
            self._rates[HEAD] = self._rates.get(HEAD, Rates()).rested()

    def _head_count(self, rows: int) -> int:
        """How many guesses of the head pay; without any, its passes over single tokens are left out, too."""
        if self.head is None:
            return 0
        return max(self._depth(HEAD, max(rows, 1), self.settings.most, self.head.seconds), self.settings.least)

    def _follow(self, state: State) -> None:
        """Forget who is gone, and take in what is known of the others."""
        here = {s.id: s for s in state.running if not s.score}
        self._texts = {id: text for id, text in self._texts.items() if id in here}
        self._headed = {id: tokens for id, tokens in self._headed.items() if id in here}
        self._kinds = {id: kind for id, kind in self._kinds.items() if id in here}
        if self.settings.ngrams:
            for s in here.values():
                text = self._texts.setdefault(s.id, Ngrams())
                at = len(text.tokens)
                text.extend(s.tokens(at, min(s.length - s.ahead, at + CATCH_UP)))

    def _offers(self, s: Sequence) -> list[tuple[int, tuple[int, ...]]]:
        """Guesses by their kind."""
        offers = []
        if self._headed.get(s.id):
            offers.append((HEAD, self._headed[s.id]))
        if s.id in self._texts and len(self._texts[s.id].tokens) == s.length - s.ahead:
            kind, tokens = self._texts[s.id].guess(self.settings.most)
            offers += [(kind, tokens)] if kind else []
        return offers

    def _choose(self, s: Sequence, rows: int, offers: Items[tuple[int, tuple[int, ...]]]) -> tuple[int, ...]:
        """The guesses that promise most, cut to what pays."""
        best: tuple[float, int, tuple[int, ...]] = (0.0, HEAD, ())
        for kind, tokens in offers:
            if not tokens:
                continue
            count = max(self._depth(kind, rows, len(tokens), 0.0), min(self.settings.least, len(tokens)))
            worth = self._rates.get(kind, Rates()).expected(count)
            if not count:
                self._rates[kind] = self._rates.get(kind, Rates()).rested()
            elif worth > best[0]:
                best = (worth, kind, tokens[:count])
        self._kinds[s.id] = best[1]
        return best[2]

    def _depth(self, kind: int, rows: int, most: int, guess: float) -> int:
        """How many guesses of a kind pay in a step of so many rows."""
        line = self._costs.line()
        return depth(self._rates.get(kind, Rates()), Cost(line.step, line.token, guess), rows, most)


def forced(plan: Plan, sampled: list[int], rate: float, draws: random.Random) -> list[int]:
    """Tokens of sampling rows by which each guess holds with this chance, if the one before it holds."""
    made: list[int] = []
    for row in plan.rows:
        own = sampled[len(made) : len(made) + row.sampled]
        for i, guess in enumerate(row.guessed):
            if draws.random() >= rate:
                own[i:] = [0 if guess else 1] * (len(own) - i)
                break
            own[i : i + 2] = [guess, max(own[i + 1], 0)]
        made += own
    return made


def fed(row: Row) -> bool:
    """Whether a row brings more than the newest token of an answer: a prompt, which the head is to see as well."""
    return not row.scores and (len(row.tokens) - row.guesses > 1 or not row.samples)
