"""What decode steps move through the device's memory, by their shapes, and how fast they did of late."""
from __future__ import annotations

from collections.abc import Iterable

import msgspec

from blackwell_infer.engine.sequences import Plan

FADE = 1 / 32
"""Share of an average that is forgotten with every step"""


class Bill(msgspec.Struct, frozen=True):
    """Bytes of a step: `weights` are read once; of `experts`, given as (bytes, experts of a token, of how many), the
    expected number of different ones is read; `keys` are (window, bytes of a token's keys and values) of layers of one
    window, 0 for none; `state` are those of one recurrent state of all layers."""

    weights: int = 0
    experts: tuple[tuple[int, int, int], ...] = ()
    keys: tuple[tuple[int, int], ...] = ()
    state: int = 0

    def step(self, rows: Iterable[tuple[int, int]]) -> float:
        """Bytes of a step of rows with so many (keys, tokens), the tokens' own keys included, where tokens are routed
        evenly: weights, and keys and values of every context, once; a state once per row, and once more for every
        token, after which one is written."""
        nbytes, all_tokens = float(self.weights), 0
        for keys, tokens in rows:
            all_tokens += tokens
            nbytes += self.state * (1 + tokens)
            nbytes += sum(size * (min(keys, window + tokens - 1) if window else keys) for window, size in self.keys)
        return nbytes + sum(size * (1 - (1 - top / count) ** all_tokens) for size, top, count in self.experts)


FREE = Bill()
"""Of a model of which nothing is known"""


class Traffic(msgspec.Struct, frozen=True):
    """Fading sums over decode steps: their number, bytes and seconds."""

    steps: float = 0.0
    nbytes: float = 0.0
    seconds: float = 0.0

    def add(self, nbytes: float, seconds: float) -> Traffic:
        """With one step more."""
        kept = 1 - FADE
        return Traffic(self.steps * kept + 1, self.nbytes * kept + nbytes, self.seconds * kept + seconds)

    @property
    def step_bytes(self) -> float:
        """Bytes of a step; 0 before the first."""
        return self.nbytes / self.steps if self.steps else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Of the time that steps took; 0 before the first."""
        return self.nbytes / self.seconds if self.seconds else 0.0


def decodes(plan: Plan) -> bool:
    """Whether every row brings the token after the last one, and perhaps guesses: no prompt, nothing scored or read
    again."""
    return bool(plan.rows) and all(
        row.samples and not row.restart and len(row.tokens) == 1 + row.guesses for row in plan.rows)


def spans(plan: Plan) -> list[tuple[int, int]]:
    """(keys, tokens) of each row, for `Bill.step`."""
    return [(row.end, len(row.tokens)) for row in plan.rows]


def share(rate: float, bandwidth: int) -> float | None:
    """The share of the roofline that a rate is; None where the device's bandwidth is not known."""
    return rate / bandwidth if bandwidth else None
