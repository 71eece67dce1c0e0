"""The events of one request as an iterator, for threads and for asyncio. Closing one early cancels its request."""
from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from blackwell_infer.engine.answer import Gathering
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.jobs import Sink
from blackwell_infer.engine.request import Request
from blackwell_infer.errors import BlackwellInferError
from blackwell_infer.types import Event, Output


class Handle:
    """A request that runs: its number, its failure, and how to end it. Dropping the last reference ends it, too."""

    def __init__(self, engine: Engine, request: Request, sink: Sink, owner: object) -> None:
        self._done = True
        self._owner = owner                      # whose end would close the engine
        self._engine = engine
        self.request = request
        self._job = engine.submit(request, sink)
        self._done = False

    @property
    def request_id(self) -> int:
        """What `LLM.cancel` takes."""
        return self._job.id

    @property
    def failure(self) -> BlackwellInferError | None:
        """The first error of the request."""
        return self._job.failure

    def close(self) -> None:
        """Cancel what still runs; no more events come."""
        if not self._done:
            self._done = True
            self._engine.cancel(self._job.id)

    def __del__(self) -> None:
        self.close()


class Stream(Handle, Iterator[Event]):
    """Events of one request, in order; the last one carries `usage`. Also a context manager.

    `close` cancels the request if it still runs; leaving the loop early and dropping the stream does the same. A
    failure is an event with `finish_reason="error"` and `error`; `failure` then holds the typed error.
    """

    def __init__(self, engine: Engine, request: Request, owner: object = None) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        super().__init__(engine, request, self._events.put, owner)

    def __next__(self) -> Event:
        if self._done:
            raise StopIteration
        self._engine.check_process()
        event = self._events.get()
        self._done = event.usage is not None
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def gather(self) -> Output:
        """Wait for the end and return everything."""
        gathering = Gathering(self.request)
        for event in self:
            gathering.add(event)
        return gathering.output()


def sink_into(events: asyncio.Queue[Event], loop: asyncio.AbstractEventLoop) -> Sink:
    """What the engine's thread calls. It holds the queue and not the stream, so that a stream can be dropped."""

    def deliver(event: Event) -> None:
        with suppress(RuntimeError):             # a loop that has been closed has no reader any more
            loop.call_soon_threadsafe(events.put_nowait, event)

    return deliver


class AsyncStream(Handle, AsyncIterator[Event]):
    """`Stream` for a running event loop: `async for`, `await aclose()`, `async with`."""

    def __init__(self, engine: Engine, request: Request, owner: object = None) -> None:
        self._done = True                        # nothing to close, should there be no running loop
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        super().__init__(engine, request, sink_into(self._events, loop), owner)

    async def __anext__(self) -> Event:
        if self._done:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
        except asyncio.CancelledError:
            self.close()
            raise
        self._done = event.usage is not None
        return event

    async def aclose(self) -> None:
        """The same, under the name that asyncio programs know."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self.close()

    async def gather(self) -> Output:
        """Wait for the end and return everything."""
        gathering = Gathering(self.request)
        async for event in self:
            gathering.add(event)
        return gathering.output()
