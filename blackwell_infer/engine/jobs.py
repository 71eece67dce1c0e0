"""What callers wait for: requests under way, with their clocks and counts; the engine's counters."""
from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np

from blackwell_infer.engine.answer import Answer
from blackwell_infer.engine.request import Request
from blackwell_infer.engine.runner import Flight
from blackwell_infer.engine.sequences import Emitted, Limits, Plan, Row, State
from blackwell_infer.engine.traffic import Traffic
from blackwell_infer.errors import BlackwellInferError, OutOfMemoryError
from blackwell_infer.log import logger
from blackwell_infer.ops.batch import Sampled
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import Event, TokenLogprob, Usage

Sink = Callable[[Event], None]


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since loading. Tokens per second count the time in which the engine had work."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    """requests that ended, in whatever way"""
    prompt_tokens: int = 0
    """tokens prefilled, those of preempted sequences again"""
    generated_tokens: int = 0
    steps: int = 0
    preemptions: int = 0
    busy_seconds: float = 0.0
    tokens_per_second: float = 0.0
    pages_used: int = 0
    """pages of what runs"""
    pages_total: int = 0
    cached_tokens: int = 0
    """tokens that were not prefilled because the prefix cache held them"""
    pages_cached: int = 0
    """pages that only the prefix cache holds; they are free for others"""
    states_cached: int = 0
    """recurrent states in the prefix cache"""
    states_total: int = 0
    """slots for such states"""
    disk_read: int = 0
    """pages read back from `prefix_disk`"""
    disk_written: int = 0
    """pages and recurrent states written there"""
    disk_dropped: int = 0
    """pages and states that were not: the disk is too slow, or failed"""
    disk_bytes: int = 0
    """bytes of the files there, as far as known"""
    step_bytes: float = 0.0
    """bytes that recent decode steps moved at least (`engine.traffic.Bill`), on average"""
    bytes_per_second: float = 0.0
    """those over the time that these steps took"""
    drafted_tokens: int = 0
    """guesses that were checked (see the setting `speculate`)"""
    accepted_tokens: int = 0
    """guesses that held"""
    drafted_at: tuple[int, ...] = ()
    """guesses that were checked, by their place: those for the token after the next first"""
    accepted_at: tuple[int, ...] = ()


def counted(old: Stats, state: State, limits: Limits, plan: Plan, fed: int, seconds: float, generated: int,
            traffic: Traffic) -> Stats:
    """The counters after a step that fed so many tokens of prompts, took so many seconds and made so many tokens."""
    total, busy, prefix = old.generated_tokens + generated, old.busy_seconds + seconds, state.prefix
    return msgspec.structs.replace(
        old, running=len(state.running), waiting=len(state.waiting), prompt_tokens=old.prompt_tokens + fed,
        generated_tokens=total, steps=old.steps + bool(plan.rows), preemptions=old.preemptions + len(plan.preempted),
        busy_seconds=busy, tokens_per_second=total / busy if busy else 0.0,
        pages_used=limits.pages - state.free.bit_count() - prefix.idle, pages_cached=prefix.idle,
        states_cached=len(prefix.states),
        cached_tokens=old.cached_tokens + sum(row.start for row in plan.rows if row.restart),
        step_bytes=traffic.step_bytes, bytes_per_second=traffic.bytes_per_second)


class Job:
    """A request under way: its sequences by id, its answers, its clock. Touched by the stepping thread only."""

    def __init__(self, id: int, request: Request, sink: Sink, first: int, tokenizer: Tokenizer) -> None:
        self.id = id
        self.request = request
        self.sink = sink
        self.index = {first + i: i for i in range(request.sampling.n)}
        self.answers = {first + i: Answer(tokenizer, request) for i in range(request.sampling.n)}
        self.failure: BlackwellInferError | None = None
        self.generated = self.drafted = self.accepted = self.cached = 0
        self.submitted = time.perf_counter()
        self.started = self.first = self.last = 0.0

    def usage(self) -> Usage:
        """Counts and times at the end."""
        started = self.started or time.perf_counter()
        first = self.first or started
        return Usage(prompt_tokens=len(self.request.prompt), completion_tokens=self.generated,
                     queue_seconds=started - self.submitted, prefill_seconds=first - started,
                     decode_seconds=max(self.last - first, 0.0), cached_tokens=self.cached,
                     drafted_tokens=self.drafted, accepted_tokens=self.accepted)


class Launched(msgspec.Struct, frozen=True):
    """A step that was launched and not read."""

    plan: Plan
    flight: Flight
    masked: bool
    """whether it waits for masks"""
    embeds: frozenset[int] = frozenset()
    """sequences whose hidden states it brings"""


def typed(error: Exception) -> BlackwellInferError:
    """The error itself if it is one of ours, else one of ours with it as the cause."""
    if isinstance(error, BlackwellInferError):
        return error
    wrapped = BlackwellInferError(f"a step failed unexpectedly: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def reported(error: Exception) -> BlackwellInferError:
    """`typed`, within an `except`: what is not one of ours is logged with its trace."""
    failure = typed(error)
    if failure is not error:
        logger.exception("a step failed")
    return failure


def blamed(plan: Plan, failure: BlackwellInferError) -> tuple[Row, ...]:
    """The rows that end with a step that could not be launched. Where it lacked memory and some rows only bring their
    next token, those do not: they run again without the others."""
    grown = tuple(row for row in plan.rows if len(row.tokens) - row.guesses > 1 or row.restart)
    return grown if isinstance(failure, OutOfMemoryError) and grown else plan.rows


def looked_from(plan: Plan, embeds: frozenset[int]) -> list[int]:
    """For each row, the number of tokens of its kind, scored or embedded, before it."""
    firsts, counts = list[int](), {True: 0, False: 0}
    for row in plan.rows:
        kind = row.id in embeds
        firsts.append(counts[kind])
        counts[kind] += len(row.tokens) if row.scores else 0
    return firsts


def prefills(row: Row, job: Job | None) -> bool:
    """Whether a row, of this request, brings tokens of a prompt, or of an answer again."""
    return (len(row.tokens) - row.guesses > 1 or not row.samples or row.restart
            or (job is not None and row.end - row.guesses == len(job.request.prompt)))


def logprobs_of(job: Job, event: Emitted, sampled: Sampled) -> tuple[TokenLogprob, ...]:
    """What the request wants to know of a token's probability and of others."""
    count = job.request.sampling.logprobs
    if count is None:
        return ()
    ids, values = np.asarray(sampled.top_ids[event.sample]), np.asarray(sampled.top_logprobs[event.sample])
    top = tuple((i, v) for i, v in zip(ids.tolist()[:count], values.tolist(), strict=False) if i >= 0)
    return (TokenLogprob(event.token, float(sampled.logprobs[event.sample]), top),)
