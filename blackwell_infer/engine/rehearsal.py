"""The largest steps of a model on a queue that runs nothing: the memory they take and the kernels they launch."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.checkpoint.reader import TensorInfo
from blackwell_infer.device.dry import DryQueue
from blackwell_infer.engine.batch import Reload, Settings, Tables, Work, make_batch, make_params
from blackwell_infer.engine.graphs import GraphRunner
from blackwell_infer.engine.head import HeadWork, batch_of, greedy
from blackwell_infer.engine.scheduler import Limits, Plan, Row, pages_for
from blackwell_infer.engine.state import Build
from blackwell_infer.engine.weights import DeviceLoading, Meter, arranger, hollow, placing
from blackwell_infer.kernels.kernel import Variant
from blackwell_infer.log import silent
from blackwell_infer.ops.batch import TokenMask
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.types import Array, Sampling

PENALISED = Sampling(repetition_penalty=1.1, logprobs=20)
GAPS = 8
"""One part in so many is added to the largest step seen: other numbers of tokens leave other gaps between arrays"""
FEW_ROWS = 64
"""Up to this many rows every count is rehearsed in doublings, and so are prompts beyond; kernels change with the number
of tokens."""


class Rehearsal(msgspec.Struct, frozen=True):
    """`workspace` is the bytes of a block that holds the temporaries of any step; `variants` what it must compile."""

    workspace: int
    variants: tuple[Variant, ...]


class Hollow(DeviceLoading):
    """Parameters that are addresses only. Small tensors whose values a family looks at are ones (rope_freqs)."""

    def __init__(self, queue: DryQueue, tensors: Mapping[str, TensorInfo], build: Build) -> None:
        super().__init__(queue, tensors, hollow(tensors), Meter(0, silent),
                         placing(build.activations, arranger(CudaOps(queue), build.dtype)))

    def computed(self, name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray[Any, Any]]) -> Array:
        return self.memory.put(np.asarray(self.expect.computed(name, shape, make)))

    def host(self, name: str) -> np.ndarray[Any, Any] | None:
        return self.expect.host(name)


def rehearse(build: Build, tensors: Mapping[str, TensorInfo], limits: Limits, queue: DryQueue) -> Rehearsal:
    """Run the largest steps within `limits` on a dry queue of the real device's architecture and libraries."""
    # Pages are never written, so one may stand for all.
    model = build.model(queue, Hollow(queue, tensors, build), limits.context, limits.batch, 1, limits.states,
                        limits.spares, limits.step_tokens)
    runner = GraphRunner(queue, CudaOps(queue, build.reproducible), model, limits.context, capture=False)
    queue.arena.reserve(queue.memory()[0] // 2)
    nothing = np.zeros((0, -(-build.geometry.vocab // 32)), np.uint32)
    for work in works(limits):
        runner.launch(work)
        if work.params is not None:
            flight = runner.launch(msgspec.structs.replace(work, masked=True))
            flight.choose(TokenMask(np.full(work.batch.outputs.shape[0], -1, np.int32), nothing))
    if build.head:
        for after in head_works(limits):
            runner.guess(after)
    return Rehearsal(queue.arena.reach + queue.arena.reach // GAPS, tuple(queue.variants.values()))


def works(limits: Limits) -> Iterator[Work]:
    """Steps from one row to all rows, short and long, prompts of many sizes, and scoring."""
    rows = min(limits.batch, limits.step_tokens)
    for count in sorted({rows, *(1 << i for i in range(rows.bit_length()) if 1 << i <= FEW_ROWS)}):
        yield work([1] * count, limits, scores=False)
    prompts = (2, 17, *(1 << i for i in range(FEW_ROWS.bit_length(), limits.step_tokens.bit_length())))
    for tokens in sorted({min(n, limits.step_tokens) for n in (*prompts, limits.step_tokens)}):
        yield work(spread(tokens, limits), limits, scores=False)
    if limits.checked > 1:
        for rows in sorted({1, min(limits.batch, limits.checked // 2)}):
            yield work(spread(min(limits.checked, rows * limits.context), limits, rows), limits, scores=False,
                       guesses=True)
    yield work([min(limits.score_tokens, limits.context)], limits, scores=True)


def head_works(limits: Limits) -> Iterator[HeadWork]:
    """What the head does after steps of every size, and a guess of all rows."""
    tables = Tables(limits.batch, pages_for(limits.context))
    for tokens in sorted({min(n, limits.step_tokens) for n in (*(1 << i for i in range(20)), 17, limits.step_tokens)}):
        counts = spread(tokens, limits)
        slots = list(range(len(counts)))
        starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        places = np.concatenate([np.arange(limits.context - n, limits.context) for n in counts]).astype(np.int32)
        last, own = starts[1:] - 1, np.asarray(slots, np.int32)
        steps = (batch_of(np.zeros(tokens, np.int32), places, starts, slots, tables),
                 batch_of(-1 - own, places[last], np.arange(len(slots) + 1, dtype=np.int32), slots, tables))
        yield HeadWork(steps, np.arange(tokens, dtype=np.int32), last, own, greedy(len(slots)))


def spread(tokens: int, limits: Limits, most: int = 1 << 30) -> list[int]:
    """So many tokens over as many rows as there may be (or `most`), most of them in the first ones."""
    rows = min(limits.batch, tokens, most)
    counts, left = [], tokens - rows
    for _ in range(rows):
        counts.append(1 + min(left, limits.context - 1))
        left -= counts[-1] - 1
    return counts


def work(counts: list[int], limits: Limits, scores: bool, guesses: bool = False) -> Work:
    """A step of rows that bring so many tokens each, all but the first of them `guesses`, and end at the end of the
    context."""
    rows = tuple(Row(id=i, slot=i, tokens=(0,) * n, start=limits.context - n, pages=(0,) * pages_for(limits.context),
                     new_pages=0, restart=True, samples=not scores, scores=scores, home=i,
                     guesses=guesses * (n - 1), spares=(0,) * (guesses * (n - 1))) for i, n in enumerate(counts))
    batch = make_batch(Plan(rows), Tables(limits.batch, pages_for(limits.context)))
    nothing = np.zeros(0, np.int32)
    if scores:
        wanted = np.arange(counts[0], dtype=np.int32)
        return Work(batch, None, nothing, (), wanted, np.zeros_like(wanted), True)
    one = np.zeros(1, np.int32)
    return Work(batch, make_params(rows, [Settings(PENALISED, 0, (0,), (0.0,))] * len(rows)),
                np.zeros(batch.outputs.shape[0], np.int32), (Reload(0, one, one),), nothing, nothing, False)
