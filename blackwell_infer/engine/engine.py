"""The step loop: requests in, events out. One thread steps; any thread submits and cancels."""
from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec
import numpy as np

from blackwell_infer.engine import saved, scheduler
from blackwell_infer.engine.answer import Answer
from blackwell_infer.engine.batch import Settings, Tables, make_work
from blackwell_infer.engine.request import Request
from blackwell_infer.engine.runner import Flight, Result, Runner
from blackwell_infer.engine.saved import SavedPrefix
from blackwell_infer.engine.scheduler import Emitted, Limits, Plan, Row, Sequence
from blackwell_infer.engine.speculate import Speculator
from blackwell_infer.errors import BlackwellInferError, ModelOutputError, OutOfMemoryError, RequestError
from blackwell_infer.log import logger
from blackwell_infer.ops.batch import Sampled
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import Event, FinishReason, TokenLogprob, Usage

Sink = Callable[[Event], None]
T = TypeVar("T")


class Score(msgspec.Struct, frozen=True):
    """Teacher-forced scores of T tokens: `logprobs` [T] float32 holds log p(token i | tokens before it), 0.0 for the
    first, which nothing precedes. `logits` [T, V] float32, if asked for, are the model's after each token."""

    logprobs: np.ndarray[Any, np.dtype[np.float32]]
    logits: np.ndarray[Any, np.dtype[np.float32]] | None = None


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
    drafted_tokens: int = 0
    """guesses that were checked (see the setting `speculate`)"""
    accepted_tokens: int = 0
    """guesses that held"""
    drafted_at: tuple[int, ...] = ()
    """guesses that were checked, by their place: those for the token after the next first"""
    accepted_at: tuple[int, ...] = ()


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


class Scoring:
    """A text being scored. `result` is complete once every position is."""

    def __init__(self, id: int, tokens: tuple[int, ...], vocab: int, logits: bool) -> None:
        self.id = id
        try:
            values = np.empty((len(tokens), vocab), np.float32) if logits else None
        except MemoryError:
            raise OutOfMemoryError(f"logits of {len(tokens)} tokens take {4 * len(tokens) * vocab} bytes on the host, "
                                   "which are not free; score shorter pieces") from None
        self.result = Score(np.zeros(len(tokens), np.float32), values)
        self.future: Future[Score] = Future()


class Launched(msgspec.Struct, frozen=True):
    """A step that was launched and not read."""

    plan: Plan
    flight: Flight


class Engine:
    """Continuous batching of any number of callers over one runner.

    `submit`, `score`, `cancel`, `stats` and `close` are safe from any thread. `run` loops on one thread until `close`;
    `step` is one turn of it for callers that drive the engine themselves. Sinks are called on the stepping thread and
    must return at once. A request's last event carries `usage`.

    If the runner's depth is 1, a step is read after the next one was launched: the device never waits for the host.
    What a step did for a sequence that ended or was cancelled meanwhile is dropped. Where a sequence of the step has
    something to guess, the step is read first: guesses follow known tokens.
    """

    def __init__(self, runner: Runner, limits: Limits, tokenizer: Tokenizer, vocab: int,
                 speculator: Speculator | None = None) -> None:
        self.runner = runner
        self.limits = limits
        self.tokenizer = tokenizer
        self.vocab = vocab
        self._process = os.getpid()
        self._wake = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._ids = itertools.count()
        self._next_sequence = 0
        self._closed: BlackwellInferError | None = None
        self._state = scheduler.start(limits)
        self._launched: Launched | None = None
        self._speculator = speculator
        self._mark = 0.0
        """when the last step was read, or the engine began after having nothing to do"""
        self._tables = Tables(limits.batch, scheduler.pages_for(limits.context), limits.homes)
        self._jobs: dict[int, Job] = {}
        self._scorings: dict[int, Scoring] = {}
        self._settings: dict[int, Settings] = {}
        self._stats = Stats(pages_total=limits.pages, states_total=limits.states)

    def submit(self, request: Request, sink: Sink) -> Job:
        """Queue a request. RequestError if it can never run, or the engine is closed."""
        self.check_process()
        wanted = request.sampling.max_tokens or self.limits.context
        whole = scheduler.admitted(self.limits, Sequence(id=0, prompt=request.prompt, limit=wanted,
                                                         stop_ids=request.stop_ids))
        with self._wake:
            self._check_open()
            job = Job(next(self._ids), request, sink, self._take_ids(request.sampling.n), self.tokenizer)
            self._post(lambda: self._start(job, whole))
        return job

    def score(self, tokens: tuple[int, ...], logits: bool) -> tuple[int, Future[Score]]:
        """Queue a text for scoring: an id to cancel it by, and its result to come. RequestError as for `submit`."""
        self.check_process()
        whole = scheduler.admitted(self.limits, Sequence(id=0, prompt=tokens, limit=0, score=True))
        with self._wake:
            self._check_open()
            scoring = Scoring(next(self._ids), tokens, self.vocab, logits)
            id = self._take_ids(1)
            self._post(lambda: self._start_scoring(scoring, msgspec.structs.replace(whole, id=id)))
        return scoring.id, scoring.future

    def save(self, tokens: tuple[int, ...]) -> Future[SavedPrefix]:
        """Copies of what the prefix cache holds of these tokens, to come. Fails with what `saved.take` raises."""
        return self._between_steps(lambda: saved.take(self._state, self.limits, self.runner, tokens))

    def load(self, prefix: SavedPrefix) -> Future[int]:
        """Bring a saved prefix into the cache: the number of its tokens. Fails with what `saved.bring` raises."""

        def bring() -> int:
            self._state = saved.bring(self._state, self.limits, self.runner, prefix)
            return len(prefix.tokens)

        return self._between_steps(bring)

    def _between_steps(self, action: Callable[[], T]) -> Future[T]:
        """The result of something that the stepping thread does before its next step."""
        self.check_process()
        future: Future[T] = Future()

        def act() -> None:
            try:
                future.set_result(action())
            except Exception as error:  # a caller's failure is no failure of the loop
                future.set_exception(typed(error))

        with self._wake:
            self._check_open()
            self._post(act)
        return future

    def cancel(self, request_id: int) -> None:
        """End a request before its time; its unfinished choices end as "cancelled". Unknown ids are ignored, and so is
        a fork of this process, where nothing runs and the lock may be held for ever."""
        if os.getpid() != self._process:
            return
        with self._wake:
            self._post(lambda: self._cancel(request_id))

    def stats(self) -> Stats:
        """A snapshot of the counters."""
        return self._stats

    def run(self) -> None:
        """Step until `close`. Whatever still runs then is cancelled."""
        while True:
            with self._wake:
                while not self._inbox and not self._busy and self._closed is None:
                    self._wake.wait()
                if self._closed is not None:
                    break
            try:
                self.step()
            except Exception as error:  # the loop must answer every caller, whatever went wrong
                logger.exception("the engine stopped")
                with self._wake:
                    self._closed = typed(error)
                self._fail(frozenset(self._jobs) | frozenset(self._scorings), typed(error))
        self._drain()
        self._fail(frozenset(self._scorings), self._closed)
        for id in {job.id for job in self._jobs.values()}:
            self._cancel(id)
        self._count(Plan(()), 0, 0.0, 0)

    def close(self) -> None:
        """Make `run` end and refuse what comes later. Idempotent; does not wait. Does nothing in a fork."""
        if os.getpid() != self._process:
            return
        with self._wake:
            self._closed = self._closed or RequestError("the model is closed; open it again")
            self._wake.notify_all()

    def step(self) -> bool:
        """Take in what callers asked, launch a step, read the one before (or this one, if the runner has no depth) and
        hand out its events. False if there was nothing to do."""
        self._drain()
        began = time.perf_counter()
        before, self._launched = self._launched, None
        self._mark = self._mark if before is not None else began
        busy, tokens, guesses = before is not None, 0, dict[int, tuple[int, ...]]()
        if self._speculator is not None:
            if before is not None and self._speculator.must_read(self._state, before.plan, self.limits):
                tokens, before = self._land(before), None
            guesses = self._speculator.guesses(self._state, self.limits)
        plan = scheduler.plan(self._state, self.limits, guesses)
        fed = sum(len(row.tokens) - row.guesses for row in plan.rows if self._prefills(row))
        for row in plan.rows:
            job = self._jobs.get(row.id)
            if job is not None and not job.started:
                job.started, job.cached = began, row.start
        failure = None
        try:
            if plan.rows:
                self._launched = Launched(plan, self._launch(plan))
                self._state = scheduler.begin(self._state, plan)
        except Exception as error:  # whatever a backend raises ends this step's requests, not the others
            failure = typed(error)
            if failure is not error:
                logger.exception("a step failed")
        tokens += 0 if before is None else self._land(before)
        if failure is not None:
            self._fail(frozenset(row.id for row in blamed(plan, failure)), failure)
        elif self._launched is not None and not self.runner.depth:
            tokens += self._land(self._launched)
            self._launched = None
        busy = busy or bool(plan.rows)
        self._count(plan, fed, time.perf_counter() - began if busy else 0.0, tokens)
        return busy

    def _launch(self, plan: Plan) -> Flight:
        needed = {row.id for row in plan.rows if row.restart or row.scores}
        sequences = {s.id: s for s in (*self._state.running, *self._state.waiting) if s.id in needed}
        logits = frozenset(id for id, s in self._scorings.items() if s.result.logits is not None)
        return self.runner.launch(make_work(plan, sequences, self._settings, logits, self._tables))

    def _land(self, launched: Launched) -> int:
        """Wait for a step and hand out its events; the number of tokens that it made."""
        plan = launched.plan
        try:
            result = launched.flight.result()
        except Exception as error:  # as at the launch
            failure = typed(error)
            if failure is not error:
                logger.exception("a step failed")
            self._fail(frozenset(row.id for row in plan.rows), failure)
            return 0
        now = time.perf_counter()
        tokens = [] if result.sampled is None else np.asarray(result.sampled.tokens).tolist()
        if self._speculator is not None:
            tokens = self._speculator.read(plan, tokens)
        self._state, events = scheduler.commit(self._state, plan, tokens)
        seconds, self._mark = now - self._mark, now
        firsts, made = scored_from(plan), 0
        for i in {event.row for event in events}:
            if plan.rows[i].guesses:
                self._jobs[plan.rows[i].id].drafted += plan.rows[i].guesses
        for event in events:
            row = plan.rows[event.row]
            if row.scores:
                self._scored(event, row.start, firsts[event.row], len(row.tokens), result)
            elif result.sampled is not None and event.id in self._jobs:  # a stop string may have ended it
                self._sampled(event, result.sampled, now)
                made += event.token >= 0
        if self._speculator is not None:
            self._learn(self._speculator, plan, events, seconds)
        return made

    def _learn(self, speculator: Speculator, plan: Plan, events: tuple[Emitted, ...], seconds: float) -> None:
        """Tell what became of guesses, and have the model's head make new ones. Where that fails, what ran ends."""
        try:
            speculator.landed(plan, events, self._state, self._tables, self.limits, seconds)
        except Exception as error:  # as at the launch
            failure = typed(error)
            if failure is not error:
                logger.exception("guessing failed")
            self._fail(frozenset(row.id for row in plan.rows), failure)

    @property
    def _busy(self) -> bool:
        return bool(self._state.running or self._state.waiting or self._launched)

    def check_process(self) -> None:
        """RequestError in a fork of the process that loaded the model: the stepping thread did not come along."""
        if os.getpid() != self._process:
            raise RequestError("this process was forked from the one that loaded the model; load it in this process, "
                               "or start processes by spawn")

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    def _take_ids(self, count: int) -> int:
        first, self._next_sequence = self._next_sequence, self._next_sequence + count
        return first

    def _post(self, action: Callable[[], None]) -> None:
        self._inbox.append(action)
        self._wake.notify_all()

    def _drain(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _start(self, job: Job, whole: Sequence) -> None:
        for id, index in job.index.items():
            self._jobs[id] = job
            self._settings[id] = job.request.settings[index]
            self._state = scheduler.submit(self._state, self.limits, msgspec.structs.replace(whole, id=id))

    def _start_scoring(self, scoring: Scoring, sequence: Sequence) -> None:
        self._scorings[sequence.id] = scoring
        self._state = scheduler.submit(self._state, self.limits, sequence)

    def _cancel(self, request_id: int) -> None:
        ids = [id for id, job in self._jobs.items() if job.id == request_id]
        self._state = scheduler.cancel(self._state, frozenset(ids))
        for id in ids:
            self._end(id, "cancelled")
        for id in [id for id, scoring in self._scorings.items() if scoring.id == request_id]:
            self._state = scheduler.cancel(self._state, frozenset({id}))
            self._scorings.pop(id).future.cancel()

    def _scored(self, event: Emitted, start: int, first: int, count: int, result: Result) -> None:
        """Copy a chunk's scores to their positions; a preempted text is scored again, to the same places."""
        scoring = self._scorings[event.id]
        assert result.logprobs is not None
        values = result.logprobs[first : first + count]
        total = len(scoring.result.logprobs)
        following = min(count, total - start - 1)
        scoring.result.logprobs[start + 1 : start + 1 + following] = values[:following]
        if scoring.result.logits is not None and result.logits is not None:
            scoring.result.logits[start : start + count] = result.logits[first : first + count]
        if event.finish is not None:
            self._scorings.pop(event.id)
            if scoring.future.set_running_or_notify_cancel():
                scoring.future.set_result(scoring.result)

    def _sampled(self, event: Emitted, sampled: Sampled, now: float) -> None:
        """Hand out one token, and the end of its choice if it is the last."""
        job = self._jobs[event.id]
        if event.token < 0:
            self._end(event.id, "error", failure=ModelOutputError(
                "the model gave no usable distribution: every logit is NaN or excluded; are the weights intact?"))
            return
        job.generated += 1
        job.accepted += event.guessed
        job.first = job.first or now
        job.last = now
        ids = (event.token,)
        logprobs = self._logprobs(job, event, sampled)
        if event.finish == "stop":
            self._end(event.id, "stop", ids, logprobs)
            return
        piece = job.answers[event.id].push(event.token)
        if piece.stopped:
            self._state = scheduler.cancel(self._state, frozenset({event.id}))
            self._end(event.id, "stop", ids, logprobs, piece.text, piece.reasoning)
        elif event.finish is not None:
            self._end(event.id, "length", ids, logprobs, piece.text, piece.reasoning)
        else:
            job.sink(Event(request_id=job.id, index=job.index[event.id], text=piece.text, reasoning=piece.reasoning,
                           token_ids=ids, logprobs=logprobs))

    def _logprobs(self, job: Job, event: Emitted, sampled: Sampled) -> tuple[TokenLogprob, ...]:
        count = job.request.sampling.logprobs
        if count is None:
            return ()
        ids, values = np.asarray(sampled.top_ids[event.sample]), np.asarray(sampled.top_logprobs[event.sample])
        top = tuple((i, v) for i, v in zip(ids.tolist()[:count], values.tolist(), strict=False) if i >= 0)
        return (TokenLogprob(event.token, float(sampled.logprobs[event.sample]), top),)

    def _end(self, id: int, reason: FinishReason, ids: tuple[int, ...] = (), logprobs: tuple[TokenLogprob, ...] = (),
             text: str = "", reasoning: str = "", failure: BlackwellInferError | None = None) -> None:
        """Send the last event of a choice, with what its text still held back."""
        job = self._jobs.pop(id)
        self._settings.pop(id)
        rest = job.answers.pop(id).flush()
        job.failure = job.failure or failure
        if not job.answers:
            self._stats = msgspec.structs.replace(self._stats, finished=self._stats.finished + 1)
        job.sink(Event(request_id=job.id, index=job.index[id], text=text + rest.text,
                       reasoning=reasoning + rest.reasoning, token_ids=ids, logprobs=logprobs, finish_reason=reason,
                       usage=None if job.answers else job.usage(), error=None if failure is None else str(failure)))

    def _fail(self, ids: frozenset[int], error: BlackwellInferError) -> None:
        """End sequences with an error; what they have generated stays with their callers."""
        self._state = scheduler.cancel(self._state, ids)
        for id in sorted(ids):
            if id in self._jobs:
                self._end(id, "error", failure=error)
            scoring = self._scorings.pop(id, None)
            if scoring is not None and scoring.future.set_running_or_notify_cancel():
                scoring.future.set_exception(error)

    def _prefills(self, row: Row) -> bool:
        """Whether a row brings tokens of a prompt, or of an answer again."""
        job = self._jobs.get(row.id)
        return (len(row.tokens) - row.guesses > 1 or not row.samples or row.restart
                or (job is not None and row.end - row.guesses == len(job.request.prompt)))

    def _count(self, plan: Plan, fed: int, seconds: float, generated: int) -> None:
        old, prefix = self._stats, self._state.prefix
        total, busy = old.generated_tokens + generated, old.busy_seconds + seconds
        if self._speculator is not None:
            counts = self._speculator.counts
            old = msgspec.structs.replace(
                old, drafted_tokens=sum(counts.drafted), accepted_tokens=sum(counts.accepted),
                drafted_at=counts.drafted, accepted_at=counts.accepted)
        self._stats = msgspec.structs.replace(
            old, running=len(self._state.running), waiting=len(self._state.waiting),
            prompt_tokens=old.prompt_tokens + fed, generated_tokens=total, steps=old.steps + bool(plan.rows),
            preemptions=old.preemptions + len(plan.preempted), busy_seconds=busy,
            tokens_per_second=total / busy if busy else 0.0,
            pages_used=self.limits.pages - self._state.free.bit_count() - prefix.idle, pages_cached=prefix.idle,
            states_cached=len(prefix.states),
            cached_tokens=old.cached_tokens + sum(row.start for row in plan.rows if row.restart))


def blamed(plan: Plan, failure: BlackwellInferError) -> tuple[Row, ...]:
    """The rows that end with a step that could not be launched. Where it lacked memory and some rows only bring their
    next token, those do not: they run again without the others."""
    grown = tuple(row for row in plan.rows if len(row.tokens) - row.guesses > 1 or row.restart)
    return grown if isinstance(failure, OutOfMemoryError) and grown else plan.rows


def scored_from(plan: Plan) -> list[int]:
    """For each row, the number of scored tokens before it."""
    counts = [len(row.tokens) if row.scores else 0 for row in plan.rows]
    return list(itertools.accumulate(counts, initial=0))


def typed(error: Exception) -> BlackwellInferError:
    """The error itself if it is one of ours, else one of ours with it as the cause."""
    if isinstance(error, BlackwellInferError):
        return error
    wrapped = BlackwellInferError(f"a step failed unexpectedly: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
