"""Guesses of a model's own head (multi-token prediction): its pass over what a step brought, then one token at a time.

The head sees the hidden state of every token with the token after it. So its pass over a step runs once the step is
read and its last tokens are known; what it guesses then is checked in the next step. Its keys and values lie in the
pages of the sequence, at the positions of the hidden states, and what a wrong guess left there is written over.
Letters: T tokens of a step that stay, G rows that guess, V vocabulary.
"""
from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

import msgspec
import numpy as np

from blackwell_infer.engine.batch import Ints, Tables, bucket
from blackwell_infer.engine.scheduler import Plan, Row, Sequence
from blackwell_infer.kv.spec import PAGE
from blackwell_infer.ops.batch import Batch, SampleParams
from blackwell_infer.types import Array


class HeadWork(msgspec.Struct, frozen=True):
    """`steps[0]` is the pass over T tokens, whose hidden states are rows `take` [T] of the last step's; the others
    bring one token in each of the G rows that guess. Those rows end with tokens `last` [G] of the pass and belong to
    `slots` [G]."""

    steps: tuple[Batch, ...]
    take: Array
    last: Array
    slots: Array
    params: SampleParams


class Guessing(Protocol):
    """A runner whose model has a head."""

    def guess(self, work: HeadWork) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """The tokens [steps, G] that the head guesses one after the other, on the host. DeviceError and its kind."""
        ...


class Head:
    """The head of a runner's model, and what it guessed last."""

    def __init__(self, runner: Guessing) -> None:
        self.runner = runner
        self.seconds = 0.0
        """of one more guess, a fading mean"""
        self._passes: dict[int, float] = {}

    def guess(self, plan: Plan, known: Mapping[int, Sequence], tables: Tables, count: int,
              context: int) -> dict[int, tuple[int, ...]]:
        """Guesses by sequence id, after a step that was read; `known` are the sequences that go on running. As many as
        `count`, and as their pages have room for."""
        work, ids = head_work(plan, known, tables, count, context)
        if work is None:
            return {}
        began = time.perf_counter()
        found = self.runner.guess(work)
        self._measure(len(work.steps), time.perf_counter() - began)
        return {id: usable(found[:, i].tolist()) for i, id in enumerate(ids)}

    def _measure(self, steps: int, seconds: float) -> None:
        """The pass itself is needed anyway: what a guess costs is what each step after it adds."""
        old = self._passes.get(steps, seconds)
        self._passes[steps] = old + (seconds - old) / 8
        fewest, most = min(self._passes), max(self._passes)
        if most > fewest:
            self.seconds = max((self._passes[most] - self._passes[fewest]) / (most - fewest), 0.0)
        else:
            self.seconds = self._passes[most] / most


def usable(tokens: list[int]) -> tuple[int, ...]:
    """Up to the first that is none."""
    return tuple(tokens[: next((i for i, token in enumerate(tokens) if token < 0), len(tokens))])


def head_work(plan: Plan, known: Mapping[int, Sequence], tables: Tables, count: int,
              context: int) -> tuple[HeadWork | None, list[int]]:
    """The work after a step, and the ids of the sequences that it guesses for. None if nothing of the step stays."""
    rows: list[tuple[Row, Sequence, int, int]] = []
    first = 0
    for row in plan.rows:
        s = known.get(row.id)
        if s is not None and not row.scores and s.pages and row.start < s.cached <= row.end:
            rows.append((row, s, first, s.cached - row.start))
        first += len(row.tokens)
    if not rows:
        return None, []
    guessing = [(i, s) for i, (row, s, _, _) in enumerate(rows) if row.samples and count]
    room = min((min(len(s.pages) * PAGE, context) - s.cached for _, s in guessing), default=0)
    counts = np.asarray([n for *_, n in rows], np.int32)
    starts = np.concatenate((np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)))
    whole = batch_of(np.concatenate([np.asarray(s.tokens(row.start + 1, row.start + n + 1), np.int32)
                                     for row, s, _, n in rows]),
                     np.concatenate([np.arange(row.start, row.start + n, dtype=np.int32) for row, _, _, n in rows]),
                     starts, [row.slot for row, *_ in rows], tables)
    slots = [s.slot for _, s in guessing]
    newest = np.asarray([-1 - slot for slot in slots], np.int32)
    singles = np.arange(len(slots) + 1, dtype=np.int32)
    after = [batch_of(newest, np.asarray([s.cached + i for _, s in guessing], np.int32), singles, slots, tables)
             for i in range(min(count - 1, room) if guessing else 0)]
    work = HeadWork((whole, *after), np.concatenate([np.arange(at, at + n, dtype=np.int32) for _, _, at, n in rows]),
                    np.asarray([starts[i + 1] - 1 for i, _ in guessing], np.int32), np.asarray(slots, np.int32),
                    greedy(len(slots)))
    return work, [s.id for _, s in guessing]


def batch_of(ids: Ints, positions: Ints, starts: Ints, slots: list[int], tables: Tables) -> Batch:
    """Rows of consecutive tokens of the sequences in `slots`."""
    counts = np.diff(starts)
    lengths = positions[starts[1:] - 1] + 1
    longest = bucket(int(lengths.max()))
    nothing = np.full(len(slots), -1, np.int32)
    return Batch(ids=ids, positions=positions, rows=np.repeat(np.arange(len(slots), dtype=np.int32), counts),
                 starts=starts, lengths=lengths.astype(np.int32),
                 pages=tables.rows[slots, : min(-(-longest // PAGE), tables.rows.shape[1])],
                 outputs=np.zeros(0, np.int32), state_from=nothing, state_to=np.full(len(ids), -1, np.int32),
                 max_new=bucket(int(counts.max())), max_length=longest)


def greedy(rows: int) -> SampleParams:
    """The highest logit of each row, without penalties."""
    zeros, ones = np.zeros(rows, np.float32), np.ones(rows, np.float32)
    none, nothing = np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
    return SampleParams(temperature=zeros, top_k=none, top_p=ones, min_p=zeros, repetition=ones, presence=zeros,
                        frequency=zeros, seed=np.zeros(rows, np.uint64), position=none, slot=nothing, guess=nothing,
                        bias_starts=np.zeros(rows + 1, np.int32), bias_ids=np.zeros(0, np.int32),
                        bias_values=np.zeros(0, np.float32))
