"""The events of one request as an iterator, for threads and for asyncio. Closing one early cancels its request."""
from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Self

from blackwell_infer.engine.answer import Gathering
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.request import Request
from blackwell_infer.errors import BlackwellInferError
from blackwell_infer.types import Event, Output


class Stream(Iterator[Event]):
    """Events of one request, in order; the last one carries `usage`. Also a context manager.

    `close` cancels the request if it still runs; leaving the loop early and dropping the stream does the same. A
    failure is an event with `finish_reason="error"` and `error`; `failure` then holds the typed error.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._done = True
        self._engine = engine
        self.request = request
        self._job = engine.submit(request, self._events.put)
        self._done = False

    @property
    def request_id(self) -> int:
        """What `LLM.cancel` takes."""
        return self._job.id

    @property
    def failure(self) -> BlackwellInferError | None:
        """The first error of the request."""
        return self._job.failure

    def __next__(self) -> Event:
        if self._done:
            raise StopIteration
        self._engine.check_process()
        event = self._events.get()
        self._done = event.usage is not None
        return event

    def close(self) -> None:
        """Cancel what still runs; no more events come."""
        if not self._done:
            self._done = True
            self._engine.cancel(self._job.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def gather(self) -> Output:
        """Wait for the end and return everything."""
        gathering = Gathering(self.request)
        for event in self:
            gathering.add(event)
        return gathering.output()


class AsyncStream(AsyncIterator[Event]):
    """`Stream` for a running event loop: `async for`, `await aclose()`, `async with`."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._done = True
        self._loop = asyncio.get_running_loop()
        self._engine = engine
        self.request = request
        self._job = engine.submit(request, self._deliver)
        self._done = False

    def _deliver(self, event: Event) -> None:
        """Called on the engine's thread. A closed loop has no reader any more."""
        if not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._events.put_nowait, event)
            except RuntimeError:
                self._done = True

    @property
    def request_id(self) -> int:
        """What `LLM.cancel` takes."""
        return self._job.id

    @property
    def failure(self) -> BlackwellInferError | None:
        """The first error of the request."""
        return self._job.failure

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

    def close(self) -> None:
        """Cancel what still runs; no more events come."""
        if not self._done:
            self._done = True
            self._engine.cancel(self._job.id)

    async def aclose(self) -> None:
        """The same, under the name that asyncio programs know."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    async def gather(self) -> Output:
        """Wait for the end and return everything."""
        gathering = Gathering(self.request)
        async for event in self:
            gathering.add(event)
        return gathering.output()
