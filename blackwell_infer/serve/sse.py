"""Server-sent events."""
from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import StreamingResponse

DONE = b"data: [DONE]\n\n"


def event(data: Any, name: str | None = None) -> bytes:
    """One event; `data` is written as JSON."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


def response(events: AsyncGenerator[bytes, None]) -> StreamingResponse:
    """A stream of events. A client that goes away closes the generator at once."""
    return StreamingResponse(closing(events), media_type="text/event-stream",
                             headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


async def closing(events: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The events; however this ends, the generator is closed."""
    async with aclosing(events):
        async for item in events:
            yield item
