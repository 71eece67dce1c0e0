"""The streams of `tools/soak.py`: clients that behave badly, and a watch over those that behave well.

They run in a process of their own, so that they share neither interpreter lock nor memory with the server.

How long an answer may take is told in steps of the engine, not in seconds, so that neither a slow machine nor a queue
counts as a fault. The engine takes up requests of one priority in the order of their arrival and advances all that run
by at least a token a step, so what was before a request, and the request, are over after a number of steps that is
known (`steps_for`). Three things are faults: a request that is not over by then; one that more later ones overtook than
there are streams, that is, were complete before its first part came; and an engine that stands still for `STILL`
seconds while it has work, or that does not say how it is.
"""
from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import msgspec

MAX_BODY = 1 << 18
LONGEST = 96
"""Most tokens of an answer"""
PREFILL = 32
"""Steps that the prompts of a full batch take, with room"""
STILL = 60.0
"""Seconds in which an engine with work makes a step, however busy the machine"""
LOOK = 0.25
"""Seconds between looks at the engine"""
QUESTIONS = ("What is 12 times 12?", "Who are you?", "Tell me a story about a cat.", "What is the capital of France?",
             "Count from 1 to 20.", "What is 7 plus 8, and why?")
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
MALFORMED = (b"", b"{", b"[]", b"null", b'{"messages": 3}', b"\xff\xfe", b'{"model": "demo", "messages": []}',
             b'{"model": "demo", "prompt": {"a": 1}, "input": {"a": 1}, "messages": {"a": 1}, "max_tokens": 4}',
             b"[" * 5000, b'{"unheard_of": 1}')
KNOWN = ("complete", "late", "cut", "unfinished body", "status 400", "status 413", "status 429", "status 504")
LATE = b"did not end within"
"""What an answer says that got too little time; nothing else may make one fail"""
ENDS = {"complete": (b"data: [DONE]", b"event: message_stop", b"event: response.completed",
                     b"event: response.incomplete"),
        "failed": (b'data: {"error"', b"event: error", b"event: response.failed")}


def steps_for(batch: int, queue: int) -> int:
    """Steps after which whatever was submitted first of all that run and wait is over: everything before a request may
    take its turn, `batch` at a time, and then it takes its own. Twice that, as prompts share steps with answers."""
    return 2 * (-(-(batch + queue) // batch) + 1) * (LONGEST + PREFILL)


class Request(msgspec.Struct):
    """A request that is not over: how many steps the engine had made when it was sent, and what came of it since."""

    steps: int
    begun: bool = False
    """whether a part of the answer came"""
    overtaken: int = 0
    """later requests that were complete before the first part came"""


class Watch:
    """Requests by their number in order of submission, and the steps of the engine, which has made some already."""

    def __init__(self, patience: int, overtaking: int, steps: int = 0) -> None:
        self.patience = patience
        self.overtaking = overtaking
        self.open: dict[int, Request] = {}
        self.steps = steps
        self.most_steps = self.most_overtaken = 0
        self._numbers = itertools.count()
        self._moved = time.monotonic()

    def submit(self) -> int:
        """The number of a request that is about to be sent."""
        number = next(self._numbers)
        self.open[number] = Request(self.steps)
        return number

    def over(self, number: int, complete: bool) -> None:
        """A request is over; those before it that have nothing yet were overtaken by it if it is complete."""
        request = self.open.pop(number)
        self.most_steps = max(self.most_steps, self.steps - request.steps)
        for earlier, other in self.open.items():
            if complete and earlier < number and not other.begun:
                other.overtaken += 1
                self.most_overtaken = max(self.most_overtaken, other.overtaken)

    def look(self, steps: int, busy: bool, now: float) -> str:
        """Take in the engine's steps and whether it has work: "", or why it stands still."""
        if steps != self.steps or not busy:
            self._moved = now
        self.steps = steps
        return f"the engine made no step for {STILL:.0f} s, and has work" if now > self._moved + STILL else ""

    def fault(self, number: int) -> str:
        """Why a request has waited too long; "" as long as it has not, or is over."""
        request = self.open.get(number)
        if request is None:
            return ""
        if self.steps > request.steps + self.patience:
            return f"is not over after {self.patience} steps of the engine"
        return f"was overtaken by {request.overtaken} later requests" if request.overtaken > self.overtaking else ""


class Figures:
    """What the streams saw. The times are a sample of bounded size."""

    def __init__(self, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.gaps: list[float] = []
        self.firsts: list[float] = []
        self.most_steps = self.most_overtaken = 0
        self._draw = random.Random(seed)

    def note(self, times: list[float]) -> None:
        """Seconds from the start of a request to each of its parts."""
        for kept, more in ((self.firsts, times[:1]), (self.gaps, [b - a for a, b in itertools.pairwise(times)])):
            for value in more:
                if len(kept) < 200_000:
                    kept.append(value)
                else:
                    kept[self._draw.randrange(len(kept))] = value

    def fault(self, text: str) -> None:
        self.outcomes["fault"] += 1
        if len(self.faults) < 20:
            self.faults.append(text)


def body_of(path: str, draw: random.Random, stream: bool) -> dict[str, Any]:
    """A sound request."""
    question = draw.choice(QUESTIONS) + " " + " ".join(str(draw.randrange(100)) for _ in range(draw.randrange(30)))
    body: dict[str, Any] = {"model": "demo", "stream": stream, "temperature": draw.choice((0, 0.8))}
    count = draw.choice((8, 32, LONGEST))
    if path == "/v1/completions":
        return {**body, "prompt": question, "max_tokens": count, "n": draw.choice((1, 1, 2))}
    if path == "/v1/responses":
        return {**body, "input": question, "max_output_tokens": max(16, count)}
    messages = [{"role": "user", "content": question}]
    if path == "/v1/messages":
        return {**body, "messages": messages, "max_tokens": count}
    more: dict[str, Any] = draw.choice(({}, {}, {"response_format": {"type": "json_object"}}, {"timeout": 0.3},
                                        {"enable_thinking": True}))
    return {**body, "messages": messages, "max_tokens": count, **more}


async def opened(port: int, path: str, data: bytes, length: int | None) -> tuple[
        asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has sent a request; `length` is what it says the body has."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
                 f"Content-Length: {len(data) if length is None else length}\r\n\r\n".encode() + data)
    return reader, writer


async def status_of(reader: asyncio.StreamReader) -> int:
    """The status of the answer, 0 where the connection was closed without one; its head is read to the end."""
    words = (await reader.readline()).split()
    while (await reader.readline()).strip():
        pass
    return int(words[1]) if len(words) > 1 else 0


def ended(line: bytes) -> str:
    """What a line of a stream says of its end: "complete", "late", "failed: ...", or nothing."""
    end = next((end for end, starts in ENDS.items() if line.startswith(starts)), "")
    if end == "failed":
        return "late" if LATE in line else f"failed: {line[:300].decode(errors='replace')}"
    return end


def says(line: bytes) -> bool:
    """Whether a line of a stream brings a part of an answer, and not only that one is to come."""
    return line.startswith(b"data: ") and any(
        mark in line for mark in (b'"choices":[{', b'_text.delta"', b'"content_block_delta"'))


async def follow(reader: asyncio.StreamReader, request: Request, times: list[float], began: float, most: int) -> str:
    """Read a stream to its end, or `most` parts of it."""
    async for line in reader:
        if end := ended(line):
            return end
        if says(line):
            request.begun = True
            times.append(time.perf_counter() - began)
            if len(times) >= most:
                return "cut"
    return "broken off"


async def behave(port: int, draw: random.Random, figures: Figures, request: Request) -> str:
    """A request that goes through, or is given up half way; what became of it."""
    path = draw.choice(PATHS)
    stream = draw.random() < 0.8
    leave = draw.random() < 0.3
    request.begun = not stream  # whole answers come at their end, so nobody sees when they begin
    began, times = time.perf_counter(), list[float]()
    reader, writer = await opened(port, path, json.dumps(body_of(path, draw, stream)).encode(), None)
    try:
        if leave and not stream:
            await asyncio.sleep(draw.random() * 0.5)
            return "cut"
        status = await status_of(reader)
        if status in (429, 504):
            await reader.read()
            return f"status {status}"
        if status != 200:
            return f"unexpected status {status} of {path}: {(await reader.read(300)).decode(errors='replace')}"
        if stream:
            return await follow(reader, request, times, began, draw.randrange(1, 20) if leave else 1 << 30)
        answer = json.loads(await reader.read())
        return f"failed: {answer['error']}" if answer.get("error") else "complete"
    finally:
        figures.note(times)
        if leave and draw.random() < 0.5:
            writer.transport.abort()
        writer.close()


async def misbehave(port: int, draw: random.Random) -> str:
    """A request that must be refused, or one that never ends."""
    path, way = draw.choice(PATHS), draw.choice(("malformed", "malformed", "large", "announced", "unfinished"))
    data, length = draw.choice(MALFORMED), None
    if way == "large":
        data = json.dumps({"model": "demo", "messages": "x" * (2 * MAX_BODY)}).encode()
    elif way == "announced":
        length = 1 << 40
    elif way == "unfinished":
        data, length = b'{"model": "demo", ', 1000
    reader, writer = await opened(port, path, data, length)
    try:
        if way == "unfinished":
            await asyncio.sleep(draw.random())
            writer.transport.abort()
            return "unfinished body"
        wanted = 400 if way == "malformed" else 413
        try:
            status = await status_of(reader)
        except ConnectionError:
            status = 0
        # A server that refuses a body while it still comes may close before its answer is read.
        if status == wanted or (way == "large" and status == 0):
            return f"status {wanted}"
        return f"unexpected status {status} of {path} for a {way} body {data[:60]!r}"
    finally:
        writer.close()


async def run_stream(port: int, seed: int, end: float, figures: Figures, watch: Watch) -> None:
    """One request after the other until `end`."""
    draw = random.Random(seed)
    while time.monotonic() < end:
        number = watch.submit()
        bad = draw.random() < 0.15
        task = asyncio.ensure_future(misbehave(port, draw) if bad else
                                     behave(port, draw, figures, watch.open[number]))
        outcome = ""
        while not outcome and not (await asyncio.wait({task}, timeout=LOOK))[0]:
            outcome = watch.fault(number)
        task.cancel()
        if not outcome:
            try:
                outcome = await task
            except (ConnectionError, ValueError) as error:
                outcome = f"broken: {type(error).__name__} {error}"
        watch.over(number, outcome == "complete" and not bad)
        if outcome in KNOWN:
            figures.outcomes[outcome] += 1
        else:
            figures.fault(outcome)
        if outcome == "status 429":
            await asyncio.sleep(draw.random())


async def engine_of(port: int) -> dict[str, Any]:
    """What /v1/engine says."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(b"GET /v1/engine HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        status = await status_of(reader)
        if status != 200:
            raise ValueError(f"/v1/engine answers with status {status}")
        found: dict[str, Any] = json.loads(await reader.read())
        return found
    finally:
        writer.close()


async def look(port: int, figures: Figures, watch: Watch) -> None:
    """Follow the engine's steps until cancelled, or until it stands still."""
    fault = ""
    while not fault:
        try:
            found = await asyncio.wait_for(engine_of(port), STILL)
            fault = watch.look(found["steps"], bool(found["running"] or found["waiting"]), time.monotonic())
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            fault = f"/v1/engine: {type(error).__name__} {error}"
        await asyncio.sleep(LOOK)
    figures.fault(fault)


async def run_streams(port: int, streams: int, seconds: float, seed: int, patience: int) -> Figures:
    """What `streams` saw in so many seconds, and until what they had asked for then was over."""
    figures, watch = Figures(seed), Watch(patience, streams, (await engine_of(port))["steps"])
    end = time.monotonic() + seconds
    looking = asyncio.ensure_future(look(port, figures, watch))

    async def all_streams() -> None:
        await asyncio.gather(*(run_stream(port, seed * 1000 + i, end, figures, watch) for i in range(streams)))

    running = asyncio.ensure_future(all_streams())
    await asyncio.wait({looking, running}, return_when=asyncio.FIRST_COMPLETED)
    for task in (looking, running):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    figures.most_steps, figures.most_overtaken = watch.most_steps, watch.most_overtaken
    return figures


async def fill(port: int, pages: int, states: int, batch: int, seed: int) -> None:
    """Write every page of the cache once, and every slot of a kept state, `batch` prompts at a time."""
    draw = random.Random(seed)

    async def one(length: int) -> None:
        prompt = [draw.randrange(4000) for _ in range(length)]
        reader, writer = await opened(port, "/v1/completions", json.dumps(
            {"model": "demo", "prompt": prompt, "max_tokens": 1}).encode(), None)
        await reader.read()
        writer.close()

    lengths = [16 * 32] * (pages // 16 + 1) + [65] * states
    for first in range(0, len(lengths), batch):
        await asyncio.gather(*map(one, lengths[first : first + batch]))


def streams_over(port: int, streams: int, seconds: float, seed: int, patience: int) -> Figures:
    """`run_streams`, for a process of its own."""
    return asyncio.run(run_streams(port, streams, seconds, seed, patience))


def filled(port: int, pages: int, states: int, batch: int, seed: int) -> None:
    """`fill`, for a process of its own."""
    asyncio.run(fill(port, pages, states, batch, seed))
