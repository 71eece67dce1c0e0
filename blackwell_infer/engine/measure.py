"""Speeds of a loaded model: a matrix of prompts and of steady decoding, through the engine as every caller uses it.

The engine is stepped here, on one thread. A decode figure counts only steps in which every stream decodes: all prompts
are prefilled first, and a few steps pass before the clock starts.
"""
from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from blackwell_infer.engine.load import Loaded
from blackwell_infer.engine.request import make_request
from blackwell_infer.engine.scheduler import Limits, pages_for
from blackwell_infer.errors import BlackwellInferError
from blackwell_infer.kv.spec import PAGE
from blackwell_infer.types import Event, Sampling

SETTLE = 4
"""Decode steps before the clock starts: a step in flight, and the recording of a bucket"""


class Matrix(msgspec.Struct, frozen=True):
    """What is measured: prompts of `prompt` tokens, and `new` decoded tokens after `depth` tokens, at every `batch`."""

    prompt: tuple[int, ...]
    new: tuple[int, ...]
    depth: tuple[int, ...]
    batch: tuple[int, ...]

    def cells(self) -> Iterator[Cell]:
        """Prompts, then decoding, batches from the first to the last."""
        for batch in self.batch:
            for prompt in self.prompt:
                if prompt:
                    yield Cell("prompt", prompt, 0, batch)
        for batch in self.batch:
            for depth in self.depth:
                for new in self.new:
                    if new:
                        yield Cell("decode", new, depth, batch)


class Cell(msgspec.Struct, frozen=True):
    """One figure: `tokens` of each of `batch` streams, which hold `depth` tokens before."""

    test: Literal["prompt", "decode"]
    tokens: int
    depth: int
    batch: int

    def context(self, step_tokens: int, guesses: int = 0) -> int:
        """Tokens that a stream comes to hold at most: the first ones decode while the last ones are prefilled. With up
        to so many `guesses` a step brings more, and not every stream is as fast."""
        if self.test == "prompt":
            return self.tokens + 1
        prefill = -(-self.batch * self.depth // max(step_tokens - self.batch, 1))
        fast = self.tokens if guesses else 0
        return max(self.depth, 1) + self.tokens + fast + (2 * prefill + 2 * SETTLE) * (1 + guesses)


class Figure(msgspec.Struct, frozen=True):
    """What one cell came to. `rates` are tokens per second of all streams together, one for each repetition; `seconds`
    the median time to the first token of a prompt, or of a decode step. `why`: it was not measured."""

    cell: Cell
    rates: tuple[float, ...] = ()
    seconds: float | None = None
    why: str = ""
    drafted: int = 0
    """guesses that were checked in all repetitions"""
    accepted: int = 0

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)


def lengths_of(cell: Cell) -> tuple[int, ...]:
    """Keys of each row in the middle of a decode cell."""
    return (max(cell.depth, 1) + SETTLE + cell.tokens // 2,) * cell.batch


class Bench:
    """A model that cells are measured on, one after the other. Prompts are random and never occur twice."""

    def __init__(self, found: Loaded, seed: int) -> None:
        self.found = found
        self.engine = found.engine()
        self.random = random.Random(seed)

    def figure(self, cell: Cell, repeat: int) -> Figure:
        """The cell's figure of `repeat` repetitions after one that does not count. BlackwellInferError: a step failed,
        or streams ended early."""
        guesses = self.found.speculation.guesses
        why = obstacle(cell, self.found.limits, guesses)
        if why:
            return Figure(cell, why=why)
        once = self.prompt if cell.test == "prompt" else self.decode
        once(cell)
        before = self.engine.stats()
        runs = [once(cell) for _ in range(repeat)]
        after = self.engine.stats()
        rates = tuple(made / seconds for made, seconds, _ in runs)
        seconds = statistics.median(each for *_, each in runs)
        return Figure(cell, rates, seconds, drafted=after.drafted_tokens - before.drafted_tokens,
                      accepted=after.accepted_tokens - before.accepted_tokens)

    def prompt(self, cell: Cell) -> tuple[int, float, float]:
        """Tokens of all prompts, seconds until every stream has its first token, and until the first one has it."""
        streams = Streams(self, cell.tokens, cell.batch, 1)
        began = time.perf_counter()
        streams.start()
        first = 0.0
        while not all(streams.counts):
            self.advance()
            if not first and any(streams.counts):
                first = time.perf_counter() - began
        total = time.perf_counter() - began
        streams.stop()
        return cell.batch * cell.tokens, total, first

    def decode(self, cell: Cell) -> tuple[int, float, float]:
        """Tokens of all streams, `cell.tokens` of each or a few more, their seconds, and those of the median step."""
        streams = Streams(self, max(cell.depth, 1), cell.batch, None)
        streams.start()
        while min(streams.counts) <= SETTLE:
            self.advance()
        before, marks = sum(streams.counts), [time.perf_counter()]
        while sum(streams.counts) - before < cell.tokens * cell.batch:
            self.advance()
            marks.append(time.perf_counter())
        made, steps = sum(streams.counts) - before, len(marks) - 1
        streams.stop()
        if steps > cell.tokens:
            raise BlackwellInferError(f"{cell.batch} streams made {made} tokens in {steps} steps: not all of them "
                                      "decoded all the time; raise max_context or kv_pages")
        return made, marks[-1] - marks[0], statistics.median(b - a for a, b in itertools.pairwise(marks))

    def advance(self) -> None:
        """One step of the engine."""
        if not self.engine.step():
            raise BlackwellInferError("the streams of a measurement ended before it was over; raise max_context")


class Streams:
    """Requests under way, and how many tokens each has come to."""

    def __init__(self, bench: Bench, prompt: int, count: int, most: int | None) -> None:
        info, draw = bench.found.info, bench.random
        sampling = Sampling(temperature=0, max_tokens=most, ignore_eos=True)
        self.bench = bench
        self.requests = [make_request(bench.found.text, info.vocab, [draw.randrange(info.vocab) for _ in range(prompt)],
                                      sampling, {}) for _ in range(count)]
        self.counts = [0] * count
        self.ids: list[int] = []

    def start(self) -> None:
        """Submit all at once."""
        self.ids = [self.bench.engine.submit(request, self.sink(i)).id for i, request in enumerate(self.requests)]

    def sink(self, i: int) -> Callable[[Event], None]:
        def count(event: Event) -> None:
            if event.error is not None:
                raise BlackwellInferError(event.error)
            self.counts[i] += len(event.token_ids)

        return count

    def stop(self) -> None:
        """Cancel what still runs, and let the engine come to rest."""
        for id in self.ids:
            self.bench.engine.cancel(id)
        while self.bench.engine.step():
            pass


def obstacle(cell: Cell, limits: Limits, guesses: int = 0) -> str:
    """Why a cell cannot be measured with what was loaded; "" if it can."""
    context = cell.context(limits.step_tokens, guesses)
    pages = cell.batch * (pages_for(context) + 1)  # the scheduler spares a page for each stream when it admits another
    if cell.batch > limits.batch:
        return f"{cell.batch} streams, max_batch is {limits.batch}"
    if context > limits.context:
        return f"{context} tokens of context, max_context is {limits.context}"
    if pages > limits.pages:
        return f"{pages} pages of cache, {limits.pages} fit"
    return ""


def context_for(cells: Sequence[Cell], step_tokens: int, guesses: int = 0) -> int:
    """A context to load with: room for all cells, and for the page that each stream has to spare."""
    return max((cell.context(step_tokens, guesses) for cell in cells), default=1) + PAGE
