"""/v1/messages and /v1/messages/count_tokens, as Anthropic's clients expect them."""
from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blackwell_infer.serve import sse
from blackwell_infer.serve.anthropic_reply import Event, Stream, message
from blackwell_infer.serve.anthropic_request import Body, CountBody, ask_of, counted, read_body
from blackwell_infer.serve.conversation import Delta, converse, count, raise_broken
from blackwell_infer.serve.errors import request_id_of
from blackwell_infer.serve.host import Host, attended


def routes(host: Host) -> list[Route]:
    async def messages(request: Request) -> Response:
        body = read_body(await host.body(request), Body)
        host.check_model(body.model)
        ask = ask_of(body, host.llm.default_sampling)
        prompt_tokens = await asyncio.to_thread(count, host, ask) if body.stream else 0
        pieces = await converse(host, ask)
        stream = Stream(f"msg_{uuid.uuid4().hex}", host.name, prompt_tokens, request_id_of(request))
        if body.stream:
            return sse.response(streamed(pieces, stream))
        return JSONResponse(await attended(request, whole(pieces, stream)))

    async def count_tokens(request: Request) -> Response:
        body = read_body(await host.body(request), CountBody)
        host.check_model(body.model)
        return JSONResponse({"input_tokens": await asyncio.to_thread(count, host, counted(body))})

    return [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    ]


async def streamed(pieces: AsyncGenerator[Delta, None], stream: Stream) -> AsyncGenerator[bytes, None]:
    """The events of a message as they come. What breaks the answer off is an event, too."""
    try:
        for event in stream.start():
            yield sse.event(event, event["type"])
        async for delta in pieces:
            for event in stream.push(delta):
                yield sse.event(event, event["type"])
    finally:
        await pieces.aclose()


async def whole(pieces: AsyncGenerator[Delta, None], stream: Stream) -> Event:
    """The message at once. Raises what breaks the answer off."""
    events = [*stream.start()]
    try:
        async for delta in pieces:
            raise_broken(delta)
            events += stream.push(delta)
    finally:
        await pieces.aclose()
    return message(events)
