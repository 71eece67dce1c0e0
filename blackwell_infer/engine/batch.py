"""From a plan to the host arrays of a step: the ragged batch, the sampling parameters, what is scored.

Letters: T tokens, R rows, N sampled rows, S scored tokens, P pages of the widest row.
"""
from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.engine.scheduler import UNKNOWN, Plan, Row, Sequence
from blackwell_infer.engine.slots import state_slots
from blackwell_infer.kv.spec import PAGE
from blackwell_infer.ops.batch import Batch, SampleParams
from blackwell_infer.types import Array, Sampling

Ints = np.ndarray[Any, np.dtype[np.int32]]


class Settings(msgspec.Struct, frozen=True):
    """How one sequence is sampled, resolved: `seed` is its Philox key, biases are sorted by token id."""

    sampling: Sampling
    seed: int
    bias_ids: tuple[int, ...] = ()
    bias_values: tuple[float, ...] = ()

    @property
    def penalised(self) -> bool:
        """Whether tokens seen before matter."""
        s = self.sampling
        return s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0


class Reload(msgspec.Struct, frozen=True):
    """A penalty slot to set up before a step samples: token ids of prompt [n] and answer so far [m], int32."""

    slot: int
    prompt: Ints
    answer: Ints


class Work(msgspec.Struct, frozen=True):
    """One step. `batch.outputs` lists the sampled tokens; `scored` [S] the tokens whose logits are scored.

    `slots` [N] int32 are the slots of the sampled rows, -1 for those with guesses, whose next tokens the host knows.
    `targets` [S] int32 are the tokens that follow scored ones, -1
    where none does. `params` is None if nothing is sampled. `masked`: tokens are chosen once masks are told
    (`runner.Flight.choose`). `embedded` [E] int32 are the tokens whose hidden states are wanted.
    """

    batch: Batch
    params: SampleParams | None
    slots: Array
    reloads: tuple[Reload, ...]
    scored: Array
    targets: Array
    want_logits: bool
    masked: bool = False
    embedded: Array = msgspec.field(default_factory=lambda: np.zeros(0, np.int32))


class Tables:
    """Block tables by slot, kept from step to step so that a step writes new pages only. `rows` [slots, P] int32.
    `homes` are the slots of recurrent states before the kept ones (default: as many as sequences)."""

    def __init__(self, slots: int, pages: int, homes: int = 0) -> None:
        self.rows = np.zeros((slots, pages), np.int32)
        self.homes = homes or slots

    def update(self, row: Row) -> None:
        """Bring a row's slot up to date."""
        first = 0 if row.restart or row.moved else len(row.pages) - row.new_pages
        self.rows[row.slot, first : len(row.pages)] = row.pages[first:]


def bucket(n: int) -> int:
    """n rounded up so that few sizes occur: powers of two up to 1024, then four sizes per doubling."""
    if n <= 1024:
        return 1 << max(n - 1, 0).bit_length()
    step = 1 << (n - 1).bit_length() - 3
    return -(-n // step) * step


def make_batch(plan: Plan, tables: Tables) -> Batch:
    """The ragged batch of a plan; outputs are the last tokens of the rows that sample, and those before their guesses.
    A token that the host has not read is the newest of its slot."""
    counts = np.asarray([len(row.tokens) for row in plan.rows], np.int32)
    starts = np.concatenate((np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)))
    ids = np.empty(starts[-1], np.int32)
    positions = np.empty_like(ids)
    for row, first, last in zip(plan.rows, starts[:-1], starts[1:], strict=True):
        tables.update(row)
        ids[first:last] = row.tokens if row.tokens[-1] != UNKNOWN else -1 - row.slot
        positions[first:last] = np.arange(row.start, row.end, dtype=np.int32)
    lengths = np.asarray([row.end for row in plan.rows], np.int32)
    longest = bucket(int(lengths.max()))
    state_from, state_to = state_slots(plan.rows, tables.homes)
    width = min(-(-longest // PAGE), tables.rows.shape[1])
    return Batch(
        ids=ids, positions=positions, rows=np.repeat(np.arange(len(counts), dtype=np.int32), counts), starts=starts,
        lengths=lengths, pages=tables.rows[[row.slot for row in plan.rows], :width],
        outputs=np.concatenate([np.arange(last - row.sampled, last, dtype=np.int32)
                                for row, last in zip(plan.rows, starts[1:], strict=True)]),
        state_from=state_from, state_to=state_to,
        max_new=bucket(int(counts.max())), max_length=longest)


def make_params(rows: Items[Row], settings: Items[Settings]) -> SampleParams:
    """Sampling parameters of everything that rows sample, in order; `settings` are those of the rows."""
    settings = [s for row, s in zip(rows, settings, strict=True) for _ in range(row.sampled)]
    places = [(row, i) for row in rows for i in range(row.sampled)]
    chosen = [s.sampling for s in settings]
    sizes = [len(s.bias_ids) for s in settings]
    return SampleParams(
        temperature=np.asarray([s.temperature for s in chosen], np.float32),
        top_k=np.asarray([s.top_k for s in chosen], np.int32),
        top_p=np.asarray([s.top_p for s in chosen], np.float32),
        min_p=np.asarray([s.min_p for s in chosen], np.float32),
        repetition=np.asarray([s.repetition_penalty for s in chosen], np.float32),
        presence=np.asarray([s.presence_penalty for s in chosen], np.float32),
        frequency=np.asarray([s.frequency_penalty for s in chosen], np.float32),
        seed=np.asarray([s.seed for s in settings], np.uint64),
        position=np.asarray([row.end - row.guesses + i for row, i in places], np.int32),
        slot=np.asarray([row.slot if s.penalised else -1 for (row, _), s in zip(places, settings, strict=True)],
                        np.int32),
        guess=np.asarray([row.guessed[i - 1] if i else -1 for row, i in places], np.int32),
        bias_starts=np.concatenate(([0], np.cumsum(sizes))).astype(np.int32),
        bias_ids=np.asarray([i for s in settings for i in s.bias_ids], np.int32),
        bias_values=np.asarray([v for s in settings for v in s.bias_values], np.float32),
        top=max(s.logprobs or 0 for s in chosen), chained=any(row.guesses for row in rows))


def make_work(plan: Plan, sequences: Mapping[int, Sequence], settings: Mapping[int, Settings], logits: frozenset[int],
              tables: Tables, masked: bool = False, embeds: frozenset[int] = frozenset()) -> Work:
    """The host side of a step. `sequences` and `settings` are known by sequence id; `logits` are ids of scored
    sequences whose logits are wanted, `embeds` those of which hidden states are, and no scores; `masked` as in `Work`.
    """
    batch = make_batch(plan, tables)
    sampling = [row for row in plan.rows if row.samples]
    params = make_params(sampling, [settings[row.id] for row in sampling]) if sampling else None
    scored, embedded = list[Ints](), list[Ints]()
    targets: list[int] = []
    for row, first, last in zip(plan.rows, batch.starts[:-1], batch.starts[1:], strict=True):
        if row.id in embeds:
            embedded.append(np.arange(first, last, dtype=np.int32))
        elif row.scores:
            scored.append(np.arange(first, last, dtype=np.int32))
            following = sequences[row.id].prompt[row.start + 1 : row.end + 1]
            targets += following + (-1,) * (len(row.tokens) - len(following))
    slots = np.asarray([-1 if row.guesses else row.slot for row in sampling for _ in range(row.sampled)], np.int32)
    return Work(batch, params, slots, tuple(reload(row.slot, sequences[row.id]) for row in plan.rows
                                     if row.restart and not row.scores and settings[row.id].penalised),
                joined(scored), np.asarray(targets, np.int32), any(row.id in logits for row in plan.rows), masked,
                joined(embedded))


def joined(parts: Items[Ints]) -> Ints:
    """Arrays one after the other, if there are any."""
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def reload(slot: int, sequence: Sequence) -> Reload:
    """What penalties must know of a sequence that starts, or starts again."""
    return Reload(slot, np.asarray(sequence.prompt, np.int32), np.asarray(list(sequence.answer), np.int32))
