"""Keep a server under many streams that behave badly, and say whether anything was left behind.

    python tools/soak.py --streams 64 --seconds 600 --json soak.json

The demo model on NumPy is served from a thread of this process. Each stream sends one request after the other: chats,
completions, responses and messages, whole and streamed; some are cancelled or cut in the middle, some bodies are too
large, malformed or never end, some answers get too little time. Exits with 1, and says why, if a stream neither ended
nor said that it failed, or if pages, sequences, tasks, threads, descriptors or memory (beyond `GROWTH`) were left.
"""
from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import numpy as np
import uvicorn

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.serve.app import make_app
from blackwell_infer.serve.host import Host
from blackwell_infer.serve.run import listening

POOL = "asyncio_"
"""Threads of the event loop's pool, which starts them as they are needed, up to a bound, and keeps them"""
GROWTH = 64.0
"""MiB by which the process may grow after the warm-up: stored responses, the client's own figures, fragmentation."""
CONTEXT = 1024
PAGES = 10
"""Pages of the KV cache for each stream. The warm-up writes them all, so that none is seen as growth when first
touched."""
MAX_BODY = 1 << 18
PATIENCE = 120.0
"""Seconds after which a silent stream counts as hanging."""
QUESTIONS = ("What is 12 times 12?", "Who are you?", "Tell me a story about a cat.", "What is the capital of France?",
             "Count from 1 to 20.", "What is 7 plus 8, and why?")
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
MALFORMED = (b"", b"{", b"[]", b"null", b'{"messages": 3}', b"\xff\xfe", b'{"model": "demo", "messages": []}',
             b'{"model": "demo", "prompt": {"a": 1}, "input": {"a": 1}, "messages": {"a": 1}, "max_tokens": 4}',
             b"[" * 5000, b'{"unheard_of": 1}')


class Left(msgspec.Struct, frozen=True):
    """What the process holds while nothing is asked of it. Memory in MiB."""

    pages: int
    sequences: int
    tasks: int
    threads: int
    descriptors: int
    memory: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; gaps between the events of a stream, and times to the first, in milliseconds."""

    streams: int
    seconds: float
    outcomes: dict[str, int]
    tokens: int
    gap_p50: float
    gap_p99: float
    first_p50: float
    first_p99: float
    before: Left
    after: Left
    faults: tuple[str, ...]


class Served:
    """The server's address, model and loop."""

    def __init__(self, llm: LLM, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.llm, self.port, self.loop = llm, port, loop

    def left(self) -> Left:
        """What is held now; waits up to 20 seconds until nothing runs, and for connections to close."""
        end = time.monotonic() + 20
        while True:
            gc.collect()
            found = self._left()
            if time.monotonic() > end or not (found.pages or found.sequences or found.tasks > 1):
                return found
            time.sleep(0.1)

    def _left(self) -> Left:
        stats = self.llm.stats()
        with open("/proc/self/statm", encoding="ascii") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        return Left(pages=stats.pages_used, sequences=stats.running + stats.waiting,
                    tasks=len(asyncio.all_tasks(self.loop)), threads=lasting_threads(),
                    descriptors=len(os.listdir("/proc/self/fd")), memory=resident)


class Errors(logging.Handler):
    """Counts what the server logs as an error: no client may bring that about."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.seen) < 20:
            self.seen.append(f"the server logged: {self.format(record)[-500:]}")


@contextmanager
def logged() -> Iterator[Errors]:
    """The errors that are logged meanwhile, by the server and what it stands on."""
    errors = Errors()
    loggers = [logging.getLogger(name) for name in ("blackwell_infer", "uvicorn.error", "asyncio")]
    for one in loggers:
        one.addHandler(errors)
    try:
        yield errors
    finally:
        for one in loggers:
            one.removeHandler(errors)


@contextmanager
def served(streams: int) -> Iterator[Served]:
    """The demo model behind a server in a thread. Fewer places than streams, so that some wait and some are refused."""
    listener = listening("127.0.0.1", 0)
    loop = asyncio.new_event_loop()
    with LLM(device="numpy", max_context=CONTEXT, kv_pages=PAGES * streams, max_batch=max(2, streams // 2),
             max_queue=max(2, streams // 3)) as llm:
        app = make_app(Host(llm, "demo", ServeConfig(max_body=MAX_BODY)))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=5))

        def work() -> None:
            loop.run_until_complete(server.serve(sockets=[listener]))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

        thread = threading.Thread(target=work, name="server")
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Served(llm, listener.getsockname()[1], loop)
        finally:
            server.should_exit = True
            thread.join()
            listener.close()


class Figures:
    """What the streams saw. The times are a sample of bounded size, so that this tool's own memory does not grow."""

    def __init__(self, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.events = 0
        self.gaps: list[float] = []
        self.firsts: list[float] = []
        self._draw = random.Random(seed)

    def note(self, times: list[float]) -> None:
        """Seconds from the start of a request to each of its events."""
        self.events += len(times)
        for kept, more in ((self.firsts, times[:1]), (self.gaps, [b - a for a, b in itertools.pairwise(times)])):
            for value in more:
                if len(kept) < 200_000:
                    kept.append(value)
                else:
                    kept[self._draw.randrange(len(kept))] = value


def body_of(path: str, draw: random.Random, stream: bool) -> dict[str, Any]:
    """A sound request."""
    question = draw.choice(QUESTIONS) + " " + " ".join(str(draw.randrange(100)) for _ in range(draw.randrange(30)))
    body: dict[str, Any] = {"model": "demo", "stream": stream, "temperature": draw.choice((0, 0.8))}
    count = draw.choice((8, 32, 96))
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
    """What a line of a stream says of its end: "complete", "failed", or nothing."""
    if line.startswith((b"data: [DONE]", b"event: message_stop", b"event: response.completed",
                        b"event: response.incomplete")):
        return "complete"
    if line.startswith((b'data: {"error"', b"event: error", b"event: response.failed")):
        return "failed"
    return ""


async def follow(reader: asyncio.StreamReader, times: list[float], began: float, most: int) -> str:
    """Read a stream to its end, or `most` events of it."""
    async for line in reader:
        if end := ended(line):
            return end
        if line.startswith(b"data: "):
            times.append(time.perf_counter() - began)
            if len(times) >= most:
                return "cut"
    return "broken off"


async def behave(port: int, draw: random.Random, figures: Figures) -> str:
    """A request that goes through, or is given up half way; what became of it."""
    path = draw.choice(PATHS)
    stream = draw.random() < 0.8
    leave = draw.random() < 0.3
    began, times = time.perf_counter(), list[float]()
    reader, writer = await opened(port, path, json.dumps(body_of(path, draw, stream)).encode(), None)
    try:
        if leave and not stream:
            await asyncio.sleep(draw.random() * 0.5)
            return "cut"
        status = await status_of(reader)
        if status in (429, 503, 504):
            await reader.read()
            return f"status {status}"
        if status != 200:
            return f"unexpected status {status} of {path}: {(await reader.read(300)).decode(errors='replace')}"
        if stream:
            return await follow(reader, times, began, draw.randrange(1, 20) if leave else 1 << 30)
        answer = json.loads(await reader.read())
        return "complete" if "error" not in answer else "failed"
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


KNOWN = ("complete", "failed", "cut", "unfinished body", "status 400", "status 413", "status 429", "status 503",
         "status 504")


async def run_stream(port: int, seed: int, end: float, figures: Figures) -> None:
    """One request after the other until `end`."""
    draw = random.Random(seed)
    while time.monotonic() < end:
        act = misbehave(port, draw) if draw.random() < 0.15 else behave(port, draw, figures)
        try:
            outcome = await asyncio.wait_for(act, PATIENCE)
        except TimeoutError:
            outcome = f"hangs for {PATIENCE:.0f} s"
        except (ConnectionError, ValueError) as error:
            outcome = f"broken: {type(error).__name__} {error}"
        figures.outcomes[outcome if outcome in KNOWN else "fault"] += 1
        if outcome not in KNOWN and len(figures.faults) < 20:
            figures.faults.append(outcome)
        if outcome == "status 429":
            await asyncio.sleep(draw.random())


async def run_streams(port: int, streams: int, seconds: float, seed: int, figures: Figures) -> None:
    end = time.monotonic() + seconds
    await asyncio.gather(*(run_stream(port, seed * 1000 + i, end, figures) for i in range(streams)))


async def fill(port: int, pages: int, draw: random.Random) -> None:
    """Write every page of the cache once."""
    for _ in range(pages // 16 + 1):
        prompt = [draw.randrange(4000) for _ in range(16 * 32)]
        reader, writer = await opened(port, "/v1/completions", json.dumps(
            {"model": "demo", "prompt": prompt, "max_tokens": 1}).encode(), None)
        await reader.read()
        writer.close()


def lasting_threads() -> int:
    """Threads other than those of the event loop's pool."""
    return sum(not thread.name.startswith(POOL) for thread in threading.enumerate())


def faults_of(before: Left, after: Left) -> Iterator[str]:
    """What was left behind."""
    if after.pages:
        yield f"{after.pages} pages are still in use"
    if after.sequences:
        yield f"{after.sequences} answers still run or wait"
    for name in ("tasks", "threads", "descriptors"):
        if getattr(after, name) > getattr(before, name):
            yield f"{getattr(after, name)} {name}, and {getattr(before, name)} after the warm-up"
    if after.memory > before.memory + GROWTH:
        yield f"{after.memory:.1f} MiB, and {before.memory:.1f} MiB after the warm-up: grew by more than {GROWTH} MiB"


def soak(streams: int, seconds: float, seed: int = 0, warm: float = 0.0) -> Report:
    """Warm up for `warm` seconds (a tenth of the time if 0), then count what comes of so many seconds of it."""
    with logged() as errors, served(streams) as server:
        asyncio.run(fill(server.port, PAGES * streams, random.Random(seed)))
        asyncio.run(run_streams(server.port, streams, warm or seconds / 10, seed + 1, Figures(seed)))
        before = server.left()
        figures = Figures(seed)
        began = time.monotonic()
        tokens = server.llm.stats().generated_tokens
        with suppress(KeyboardInterrupt):
            asyncio.run(run_streams(server.port, streams, seconds, seed + 2, figures))
        took = time.monotonic() - began
        after = server.left()
        tokens = server.llm.stats().generated_tokens - tokens

    def at(values: list[float], share: float) -> float:
        return round(1e3 * float(np.percentile(values or [0.0], share)), 2)

    return Report(streams=streams, seconds=round(took, 1), outcomes=dict(figures.outcomes.most_common()),
                  tokens=tokens, gap_p50=at(figures.gaps, 50), gap_p99=at(figures.gaps, 99),
                  first_p50=at(figures.firsts, 50), first_p99=at(figures.firsts, 99), before=before, after=after,
                  faults=(*figures.faults, *errors.seen, *faults_of(before, after)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--warm", type=float, default=0.0, help="seconds of warm-up; 0 is a tenth of --seconds")
    parser.add_argument("--seed", type=int, default=0, help="of what the streams do")
    parser.add_argument("--json", help="write the report to this file, too")
    found = parser.parse_args()
    report = soak(found.streams, found.seconds, found.seed, found.warm)
    text = msgspec.json.format(msgspec.json.encode(report), indent=2).decode()
    print(text)
    if found.json:
        with open(found.json, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
