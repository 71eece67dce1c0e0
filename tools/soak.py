"""Keep a server under many streams that behave badly, and say whether anything was left behind.

    python tools/soak.py --streams 64 --seconds 600 --json soak.json

The demo model on NumPy is served from a thread of this process, and used by streams in another. Each stream sends one
request after the other: chats, completions, responses and messages, whole and streamed; some are cancelled or cut in
the middle, some bodies are too large, malformed or never end, some answers get too little time. Exits with 1, and says
why, if a stream neither ended nor said that it failed, if one was starved (`soak_streams` says when that is), or if
pages, sequences, tasks, threads, descriptors or memory (beyond `GROWTH`) were left.
"""
from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import msgspec
import numpy as np
import uvicorn
from soak_streams import MAX_BODY, filled, steps_for, streams_over

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.serve.app import make_app
from blackwell_infer.serve.host import Host
from blackwell_infer.serve.run import listening

P = ParamSpec("P")
T = TypeVar("T")
POOL = "asyncio_"
"""Threads of the event loop's pool, which starts them as they are needed, up to a bound, and keeps them"""
GROWTH = 64.0
"""MiB by which the process may grow after the warm-up: stored responses, the client's own figures, fragmentation."""
CONTEXT = 1024
PAGES = 10
"""Pages of the KV cache for each stream. All are written before the count begins, as are kept states, so that none is
seen as growth when first touched."""

class Left(msgspec.Struct, frozen=True):
    """What the process holds while nothing is asked of it. Memory in MiB."""

    pages: int
    sequences: int
    tasks: int
    threads: int
    descriptors: int
    memory: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. Gaps between the parts of a streamed answer, and times to the first, in milliseconds;
    `most_steps` of the engine that a request took, of `patience` that it might have, and `most_overtaken`: later ones
    that were complete before it began."""

    streams: int
    seconds: float
    outcomes: dict[str, int]
    tokens: int
    gap_p50: float
    gap_p99: float
    first_p50: float
    first_p99: float
    steps: int
    patience: int
    most_steps: int
    most_overtaken: int
    before: Left
    after: Left
    faults: tuple[str, ...]


class Served:
    """The server's address, model and loop; `patience` in steps of the engine."""

    def __init__(self, llm: LLM, port: int, loop: asyncio.AbstractEventLoop, patience: int) -> None:
        self.llm, self.port, self.loop, self.patience = llm, port, loop, patience

    def left(self) -> Left:
        """What is held now; waits until nothing runs and connections are closed, up to 20 seconds in which the engine
        makes no step."""
        steps, end = -1, 0.0
        while True:
            gc.collect()
            found = self._left()
            if self.llm.stats().steps != steps:
                steps, end = self.llm.stats().steps, time.monotonic() + 20
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
    batch, queue = max(2, streams // 2), max(2, streams // 3)
    with LLM(device="numpy", max_context=CONTEXT, kv_pages=PAGES * streams, max_batch=batch, max_queue=queue) as llm:
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
            yield Served(llm, listener.getsockname()[1], loop, steps_for(batch, queue))
        finally:
            server.should_exit = True
            thread.join()
            listener.close()


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


def apart(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function that runs in a new process, which ends with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args, **kwargs).result()


def soak(streams: int, seconds: float, seed: int = 0, warm: float = 0.0) -> Report:
    """Warm up for `warm` seconds (a tenth of the time if 0), then count what comes of so many seconds of it."""
    with logged() as errors, served(streams) as server:
        apart(filled, server.port, PAGES * streams, server.llm.stats().states_total, max(2, streams // 2), seed)
        warm_up = apart(streams_over, server.port, streams, warm or seconds / 10, seed + 1, server.patience)
        before, counts, began = server.left(), server.llm.stats(), time.monotonic()
        figures = apart(streams_over, server.port, streams, seconds, seed + 2, server.patience)
        took = time.monotonic() - began
        after, ends = server.left(), server.llm.stats()

    def at(values: list[float], share: float) -> float:
        return round(1e3 * float(np.percentile(values or [0.0], share)), 2)

    return Report(streams=streams, seconds=round(took, 1), outcomes=dict(figures.outcomes.most_common()),
                  tokens=ends.generated_tokens - counts.generated_tokens, steps=ends.steps - counts.steps,
                  gap_p50=at(figures.gaps, 50), gap_p99=at(figures.gaps, 99), first_p50=at(figures.firsts, 50),
                  first_p99=at(figures.firsts, 99), patience=server.patience, most_steps=figures.most_steps,
                  most_overtaken=figures.most_overtaken, before=before, after=after,
                  faults=(*warm_up.faults, *figures.faults, *errors.seen, *faults_of(before, after)))


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
