"""What guesses are worth: how many of them hold, how sure one is of them, and how many are worth checking.

A guess is a token that is fed before it is known. It holds if it is the token that is sampled after all before it: not
one of equal probability, but the same, for every draw has its own seed and position. So answers are those without
guesses, bit for bit, however good the guesses are; only speed depends on them.
"""
from __future__ import annotations

from collections.abc import Sequence as Items

import msgspec

MOST = 15
"""Most guesses of a row: with its newest token they are 16, up to which a row's bits do not depend on how many"""
PRIOR = 0.6
"""How many guesses are taken to hold before any was checked"""
MEMORY = 16
"""Checks that an estimate is made of: old ones fade"""
LEAST_TOKEN = 0.02
"""Share of a step that a token costs at least: less cannot be told from noise, and what is free would always pay"""
REST = 1000
"""Steps without a check after which an estimate is back near `PRIOR`, so that what was bad once is tried again"""


def accepted(guesses: Items[int], sampled: Items[int]) -> int:
    """How many guesses hold: guess i must be what was sampled before it, and so must all before."""
    for held, (guess, token) in enumerate(zip(guesses, sampled, strict=False)):
        if guess != token:
            return held
    return len(guesses)


def leveled(wanted: Items[int], room: int) -> list[int]:
    """What each gets of what it wants, one by one in turns, until `room` is used up."""
    given = [0] * len(wanted)
    while room > 0 and given != list(wanted):
        for i, want in enumerate(wanted):
            if given[i] < want and room > 0:
                given[i] += 1
                room -= 1
    return given


class Rates(msgspec.Struct, frozen=True):
    """Of the guesses at each place of a row, how many hold if all before them do: estimates between 0 and 1."""

    at: tuple[float, ...] = (PRIOR,) * MOST

    def checked(self, guesses: int, held: int) -> Rates:
        """After a row with `guesses`, of which the first `held` hold."""
        seen = min(held + 1, guesses)
        return Rates(tuple(rate + (float(i < held) - rate) / MEMORY if i < seen else rate
                           for i, rate in enumerate(self.at)))

    def expected(self, guesses: int) -> float:
        """How many of so many hold."""
        total, all_hold = 0.0, 1.0
        for rate in self.at[:guesses]:
            all_hold *= rate
            total += all_hold
        return total

    def rested(self) -> Rates:
        """After a step in which none was tried."""
        return Rates(tuple(rate + (PRIOR - rate) / REST for rate in self.at))


class Cost(msgspec.Struct, frozen=True):
    """Seconds: of a step whatever its tokens, of each token in it, of making one more guess for all its rows."""

    step: float
    token: float
    guess: float = 0.0


def depth(rates: Rates, cost: Cost, rows: int, most: int) -> int:
    """The number of guesses per row that makes most tokens per second, of `rows` rows alike. 0 if none is worth it."""
    def speed(count: int) -> float:
        seconds = (cost.step + count * cost.guess) / rows + (1 + count) * cost.token
        return (1 + rates.expected(count)) / seconds

    return max(range(most + 1), key=speed)


class Costs(msgspec.Struct, frozen=True):
    """Measured times of steps as a line over their tokens: fading sums of weights, tokens, seconds and products."""

    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def measured(self, tokens: int, seconds: float) -> Costs:
        """With one more step."""
        keep = 1 - 1 / MEMORY
        return Costs(keep * self.n + 1, keep * self.x + tokens, keep * self.y + seconds,
                     keep * self.xx + tokens * tokens, keep * self.xy + tokens * seconds)

    def line(self) -> Cost:
        """The line of least squares, a token at no less than `LEAST_TOKEN` of a step, as where reading weights is what
        takes time; so it is taken to be until steps of different sizes were seen."""
        if not self.n:
            return Cost(1.0, LEAST_TOKEN)
        token = LEAST_TOKEN * self.y / (self.n + LEAST_TOKEN * self.x)
        spread = self.n * self.xx - self.x * self.x
        if spread > 1e-6 * self.n * self.xx:
            token = min(max((self.n * self.xy - self.x * self.y) / spread, token), self.y / self.x)
        return Cost(max((self.y - token * self.x) / self.n, 1e-9), token)
