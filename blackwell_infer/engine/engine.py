"""The step loop: requests in, events out. One thread steps; any thread submits and cancels."""
from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import msgspec
import numpy as np

from blackwell_infer.engine import saved, scheduler
from blackwell_infer.engine.batch import Settings, Tables, make_work
from blackwell_infer.engine.commit import commit
from blackwell_infer.engine.disk import Disk
from blackwell_infer.engine.embedding import Embedding, Pooling, Vector
from blackwell_infer.engine.jobs import (
    Job,
    Launched,
    Sink,
    Stats,
    blamed,
    counted,
    logprobs_of,
    looked_from,
    prefills,
    reported,
    typed,
)
from blackwell_infer.engine.masks import Grammars
from blackwell_infer.engine.request import Request
from blackwell_infer.engine.runner import Flight, Result, Runner
from blackwell_infer.engine.saved import SavedPrefix
from blackwell_infer.engine.scheduler import Limits, Plan, Sequence
from blackwell_infer.engine.scoring import Score, Scoring
from blackwell_infer.engine.sequences import Emitted
from blackwell_infer.engine.speculate import Speculator
from blackwell_infer.engine.traffic import FREE, Bill, Traffic, decodes, spans
from blackwell_infer.errors import (
    BlackwellInferError,
    DeadlineError,
    ModelOutputError,
    RequestError,
    SessionError,
)
from blackwell_infer.kv.prefix import paged
from blackwell_infer.kv.spec import PAGE
from blackwell_infer.log import logger
from blackwell_infer.ops.batch import Sampled
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import Event, FinishReason, TokenLogprob

T = TypeVar("T")


class Engine:
    """Continuous batching of any number of callers over one runner.

    `submit`, `score`, `cancel`, `stats` and `close` are safe from any thread. `run` loops on one thread until `close`;
    `step` is one turn of it for callers that drive the engine themselves. Sinks are called on the stepping thread and
    must return at once. A request's last event carries `usage`.

    If the runner's depth is 1, a step is read after the next one was launched: the device never waits for the host.
    What a step did for a sequence that ended or was cancelled meanwhile is dropped. Where a sequence of the step has
    something to guess, the step is read first: guesses follow known tokens. Tokens that a grammar limits are chosen
    once the step before was read, while the device computes their logits.
    """

    def __init__(self, runner: Runner, limits: Limits, tokenizer: Tokenizer, vocab: int,
                 speculator: Speculator | None = None, disk: Disk | None = None, bill: Bill = FREE) -> None:
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
        self._disk = disk
        self._bill, self._traffic = bill, Traffic()
        self._mark = 0.0
        """when the last step was read, or the engine began after having nothing to do"""
        self._tables = Tables(limits.batch, scheduler.pages_for(limits.context), limits.homes)
        self._posted = 0
        """sequences that were submitted and that the state does not hold yet"""
        self._jobs: dict[int, Job] = {}
        self._deadlines: dict[int, float] = {}
        """by request, on the clock of `time.perf_counter`"""
        self._scorings: dict[int, Scoring | Embedding] = {}
        """texts that are only looked at, by sequence"""
        self._settings: dict[int, Settings] = {}
        self._grammars = Grammars(vocab, tokenizer.stop_ids)
        self._stats = Stats(pages_total=limits.pages, states_total=limits.states)

    def submit(self, request: Request, sink: Sink) -> Job:
        """Queue a request. RequestError if it can never run, or the engine is closed; QueueFullError (a RequestError)
        if `Limits.queue` wait already."""
        self.check_process()
        wanted = request.sampling.max_tokens or self.limits.context
        whole = scheduler.admitted(self.limits, Sequence(id=0, prompt=request.prompt, limit=wanted,
                                                         stop_ids=request.stop_ids, priority=request.priority))
        with self._wake:
            self._check_open()
            state = self._state
            scheduler.check_queue(self.limits, self._posted + len(state.running) + len(state.waiting),
                                  request.sampling.n)
            self._posted += request.sampling.n
            job = Job(next(self._ids), request, sink, self._take_ids(request.sampling.n), self.tokenizer)
            self._post(lambda: self._start(job, whole))
        return job

    def score(self, tokens: tuple[int, ...], logits: bool, top: int = 0) -> tuple[int, Future[Score]]:
        """Queue a text for scoring, with its logits or `top` alternatives to each token: an id to cancel it by, and its
        result to come. RequestError and QueueFullError as for `submit`."""
        whole = self.check_length(tokens)
        scoring = Scoring(next(self._ids), tokens, self.vocab, logits, top)
        self._look(scoring, whole)
        return scoring.id, scoring.future

    def embed(self, tokens: tuple[int, ...], pooling: Pooling) -> tuple[int, Future[Vector]]:
        """Queue a text for its vector [H] of length 1: an id to cancel it by, and the vector to come. RequestError and
        QueueFullError as for `submit`."""
        embedding = Embedding(next(self._ids), pooling)
        self._look(embedding, self.check_length(tokens))
        return embedding.id, embedding.future

    def check_length(self, tokens: tuple[int, ...]) -> Sequence:
        """A text that is only looked at. RequestError if it is empty or longer than the context."""
        return scheduler.admitted(self.limits, Sequence(id=0, prompt=tokens, limit=0, score=True))

    def _look(self, text: Scoring | Embedding, whole: Sequence) -> None:
        """Queue a text that is only looked at."""
        self.check_process()
        with self._wake:
            self._check_open()
            scheduler.check_queue(self.limits, self._posted + len(self._state.running) + len(self._state.waiting), 1)
            self._posted += 1
            id = self._take_ids(1)
            self._post(lambda: self._start_looking(text, msgspec.structs.replace(whole, id=id)))

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
        if self._disk is None:
            return self._stats
        return msgspec.structs.replace(self._stats, disk_read=self._disk.read, disk_written=self._disk.written,
                                       disk_dropped=self._disk.dropped, disk_bytes=self._disk.nbytes)

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
        if self._disk is not None:
            self._disk.flush(self._state, self.limits, self.runner)
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
        self._expire(began)
        before, self._launched = self._launched, None
        self._mark = self._mark if before is not None else began
        busy, tokens, guesses = before is not None, 0, dict[int, tuple[int, ...]]()
        if self._speculator is not None:
            if before is not None and self._speculator.must_read(
                    self._state, before.plan, self.limits, self._grammars):
                tokens, before = self._land(before), None
            guesses = self._speculator.guesses(self._state, self.limits, self._grammars)
        plan = scheduler.plan(self._state, self.limits, guesses)
        fed = sum(len(row.tokens) - row.guesses for row in plan.rows if prefills(row, self._jobs.get(row.id)))
        for row in plan.rows:
            job = self._jobs.get(row.id)
            if job is not None and not job.started:
                job.started, job.cached = began, row.start
        failure = None
        try:
            if plan.rows:
                masked = self._grammars.concern(plan)
                embeds = frozenset(id for id, text in self._scorings.items() if text.wants == "hidden")
                self._launched = Launched(plan, self._launch(plan, masked, embeds), masked, embeds)
                self._state = scheduler.begin(self._state, plan)
                if self._disk is not None:
                    self._disk.hit(plan.admitted)
        except Exception as error:  # whatever a backend raises ends this step's requests, not the others
            failure = reported(error)
        tokens += 0 if before is None else self._land(before)
        if self._launched is not None and self._launched.masked:
            self._choose(self._launched)
        if failure is not None:
            self._fail(frozenset(row.id for row in blamed(plan, failure)), failure)
        elif self._launched is not None and not self.runner.depth:
            tokens += self._land(self._launched)
            self._launched = None
        busy = busy or bool(plan.rows)
        if self._disk is not None and self._disk.pending:
            self._disk.copy(self._state, self.limits, self.runner, busy)
        self._count(plan, fed, time.perf_counter() - began if busy else 0.0, tokens)
        return busy

    def _launch(self, plan: Plan, masked: bool, embeds: frozenset[int]) -> Flight:
        needed = {row.id for row in plan.rows if row.restart or row.scores}
        sequences = {s.id: s for s in (*self._state.running, *self._state.waiting) if s.id in needed}
        logits = frozenset(id for id, text in self._scorings.items() if text.wants == "logits")
        return self.runner.launch(make_work(plan, sequences, self._settings, logits, self._tables, masked, embeds))

    def _choose(self, launched: Launched) -> None:
        """Tell a step what its tokens may be, once every step before it was read."""
        mask, failed = self._grammars.masks(launched.plan)
        try:
            launched.flight.choose(mask)
        except Exception as error:  # as at the launch
            self._launched = None
            self._fail(frozenset(row.id for row in launched.plan.rows), reported(error))
        for id, failure in failed.items():
            self._fail(frozenset({id}), failure)

    def _land(self, launched: Launched) -> int:
        """Wait for a step and hand out its events; the number of tokens that it made."""
        plan, before = launched.plan, self._state
        try:
            result = launched.flight.result()
        except Exception as error:  # as at the launch
            self._fail(frozenset(row.id for row in plan.rows), reported(error))
            return 0
        now = time.perf_counter()
        tokens = [] if result.sampled is None else np.asarray(result.sampled.tokens).tolist()
        if self._speculator is not None:
            tokens = self._speculator.read(plan, tokens)
        self._state, events = commit(self._state, plan, tokens)
        seconds, self._mark = now - self._mark, now
        if decodes(plan):
            self._traffic = self._traffic.add(self._bill.step(spans(plan)), seconds)
        firsts, made = looked_from(plan, launched.embeds), 0
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
        if self._disk is not None:
            stay = {s.id for s in (*self._state.running, *self._state.waiting)}
            for s in before.running:
                if s.id not in stay and not s.score:
                    more = tuple(event.token for event in events if event.id == s.id)
                    self._disk.left(paged(s.tokens(0, s.length - s.ahead) + more, PAGE))
        if self._speculator is not None:
            self._learn(self._speculator, plan, events, seconds)
        return made

    def _learn(self, speculator: Speculator, plan: Plan, events: tuple[Emitted, ...], seconds: float) -> None:
        """Tell what became of guesses, and have the model's head make new ones. Where that fails, what ran ends."""
        try:
            speculator.landed(plan, events, self._state, self._tables, self.limits, seconds)
        except Exception as error:  # as at the launch
            self._fail(frozenset(row.id for row in plan.rows), reported(error))

    @property
    def _busy(self) -> bool:
        return bool(self._state.running or self._state.waiting or self._launched
                    or (self._disk is not None and self._disk.pending))

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
        if job.request.deadline is not None:
            self._deadlines[job.id] = job.submitted + job.request.deadline
        for id, index in job.index.items():
            self._jobs[id] = job
            self._settings[id] = job.request.settings[index]
            if job.request.matchers:
                self._grammars.add(id, job.request.matchers[index])
        keys = paged(whole.prompt[:-1], PAGE) if self._disk is not None else ()
        if self._disk is None or not self._disk.fetch(
                self._state, self.limits, keys, lambda found: self._arrived(job, whole, found)):
            self._enqueue(job, whole)

    def _arrived(self, job: Job, whole: Sequence, found: SavedPrefix | None) -> None:
        """What a prompt waited for was read from the disk, or could not be; called on the disk's thread."""

        def bring() -> None:
            try:
                if found is not None:
                    self._state = saved.bring(self._state, self.limits, self.runner, found)
            except SessionError:
                assert self._disk is not None and found is not None
                self._disk.remove(found)
            except RequestError as error:  # no room: the prompt is read by the model
                logger.info("%s", error)
            self._enqueue(job, whole)

        with self._wake:
            self._post(bring)

    def _enqueue(self, job: Job, whole: Sequence) -> None:
        """Have what is left of a request wait for its turn."""
        for id in job.index:
            if id in self._jobs:
                self._state = scheduler.submit(self._state, self.limits, msgspec.structs.replace(whole, id=id))
        with self._wake:
            self._posted -= len(job.index)

    def _expire(self, now: float) -> None:
        """End the requests whose time is up."""
        late = {id for id, at in self._deadlines.items() if at <= now}
        if late:
            jobs = {id: job for id, job in self._jobs.items() if job.id in late}
            for id, job in jobs.items():
                self._fail(frozenset({id}), DeadlineError(
                    f"the request did not end within its {job.request.deadline:g} seconds; what was said until then "
                    "stands"))

    def _start_looking(self, text: Scoring | Embedding, sequence: Sequence) -> None:
        self._scorings[sequence.id] = text
        self._state = scheduler.submit(self._state, self.limits, sequence)
        with self._wake:
            self._posted -= 1

    def _cancel(self, request_id: int) -> None:
        ids = [id for id, job in self._jobs.items() if job.id == request_id]
        self._state = scheduler.cancel(self._state, frozenset(ids))
        for id in ids:
            self._end(id, "cancelled")
        for id in [id for id, scoring in self._scorings.items() if scoring.id == request_id]:
            self._state = scheduler.cancel(self._state, frozenset({id}))
            self._scorings.pop(id).future.cancel()

    def _scored(self, event: Emitted, start: int, first: int, count: int, result: Result) -> None:
        """Give a chunk's results to the text they belong to, and the text to its caller if that was the last."""
        text = self._scorings[event.id]
        text.take(start, first, count, result)
        if event.finish is not None:
            self._scorings.pop(event.id)
            text.finish()

    def _sampled(self, event: Emitted, sampled: Sampled, now: float) -> None:
        """Hand out one token, and the end of its choice if it is the last."""
        job = self._jobs[event.id]
        if event.token < 0:
            self._end(event.id, "error", failure=ModelOutputError(
                "the model gave no usable distribution: every logit is NaN or excluded; are the weights intact?"))
            return
        try:
            over = event.finish != "stop" and self._grammars.accept(event.id, event.token)
        except BlackwellInferError as error:
            self._fail(frozenset({event.id}), error)
            return
        job.generated += 1
        job.accepted += event.guessed
        job.first = job.first or now
        job.last = now
        ids = (event.token,)
        logprobs = logprobs_of(job, event, sampled)
        if event.finish == "stop":
            self._end(event.id, "stop", ids, logprobs)
            return
        piece = job.answers[event.id].push(event.token)
        if piece.stopped or over:
            self._state = scheduler.cancel(self._state, frozenset({event.id}))
            self._end(event.id, "stop", ids, logprobs, piece.text, piece.reasoning)
        elif event.finish is not None:
            self._end(event.id, "length", ids, logprobs, piece.text, piece.reasoning)
        else:
            job.sink(Event(request_id=job.id, index=job.index[event.id], text=piece.text, reasoning=piece.reasoning,
                           token_ids=ids, logprobs=logprobs))

    def _end(self, id: int, reason: FinishReason, ids: tuple[int, ...] = (), logprobs: tuple[TokenLogprob, ...] = (),
             text: str = "", reasoning: str = "", failure: BlackwellInferError | None = None) -> None:
        """Send the last event of a choice, with what its text still held back."""
        job = self._jobs.pop(id)
        self._settings.pop(id)
        self._grammars.drop(id)
        rest = job.answers.pop(id).flush()
        job.failure = job.failure or failure
        if not job.answers:
            self._deadlines.pop(job.id, None)
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

    def _count(self, plan: Plan, fed: int, seconds: float, generated: int) -> None:
        old = self._stats
        if self._speculator is not None:
            counts = self._speculator.counts
            old = msgspec.structs.replace(
                old, drafted_tokens=sum(counts.drafted), accepted_tokens=sum(counts.accepted),
                drafted_at=counts.drafted, accepted_at=counts.accepted)
        self._stats = counted(old, self._state, self.limits, plan, fed, seconds, generated, self._traffic)
