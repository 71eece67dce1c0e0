"""/v1/responses, as OpenAI's clients expect it."""
from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blackwell_infer.serve import sse
from blackwell_infer.serve.conversation import Delta, converse, raise_broken
from blackwell_infer.serve.errors import HttpError
from blackwell_infer.serve.host import Host, attended
from blackwell_infer.serve.openai_responses_reply import Event, Stream, new_id
from blackwell_infer.serve.openai_responses_request import Item, ask_of, items_of, read_body, said
from blackwell_infer.serve.truncation import fitted

STORED_BYTES = 64 << 20
"""What stored responses may take, with all that was said before them."""
STORED = 10_000
"""Most stored responses"""


class Stored(msgspec.Struct, frozen=True):
    """A response and the items of its conversation up to it, as JSON; the first `given` of them went in."""

    response: bytes
    items: bytes
    given: int

    @property
    def size(self) -> int:
        return len(self.response) + len(self.items)


class Store:
    """The responses used last, within limits of bytes and of their number. Used by the server's loop alone."""

    def __init__(self, limit: int, most: int) -> None:
        self._limit, self._most = limit, most
        self._size = 0
        self._kept: OrderedDict[str, Stored] = OrderedDict()

    def put(self, id: str, response: Event, items: list[Item], given: int) -> None:
        stored = Stored(msgspec.json.encode(response), msgspec.json.encode(items), given)
        self._kept[id] = stored
        self._size += stored.size
        while self._size > self._limit or len(self._kept) > self._most:
            self.remove(next(iter(self._kept)))

    def get(self, id: str) -> Stored:
        """HttpError 404 if it is not there, or no longer."""
        if id not in self._kept:
            raise HttpError(404, f"no response {id!r} is stored; the least used are dropped", "previous_response_id")
        self._kept.move_to_end(id)
        return self._kept[id]

    def remove(self, id: str) -> None:
        stored = self.get(id)
        del self._kept[id]
        self._size -= stored.size


def routes(host: Host) -> list[Route]:
    store = Store(STORED_BYTES, STORED)

    async def create(request: Request) -> Response:
        body = read_body(await host.body(request))
        host.check_model(body.model)
        before: list[Item] = []
        if body.previous_response_id is not None:
            before = msgspec.json.decode(store.get(body.previous_response_id).items)
        ask = ask_of(body, before, host.llm.default_sampling)
        if body.truncation == "auto":
            ask = await asyncio.to_thread(fitted, host, ask)
        pieces = await converse(host, ask)
        stream = Stream(new_id("resp"), host.name, body, time.time(), host.llm.tokenizer)

        def done() -> None:
            if body.store is not False and stream.response["status"] != "failed":
                given = [*before, *items_of(body)]
                items = [*given, *said(stream.response["output"])]
                store.put(stream.response["id"], stream.response, items, len(given))

        if body.stream:
            return sse.response(streamed(pieces, stream, done))
        return JSONResponse(await attended(request, whole(pieces, stream, done)))

    async def one(request: Request) -> Response:
        id = request.path_params["id"]
        if request.method == "DELETE":
            store.remove(id)
            return JSONResponse({"id": id, "object": "response", "deleted": True})
        return Response(store.get(id).response, media_type="application/json")

    async def inputs(request: Request) -> Response:
        stored = store.get(request.path_params["id"])
        return JSONResponse(listed(msgspec.json.decode(stored.items)[: stored.given], request))

    return [
        Route("/v1/responses/{id}/input_items", inputs, methods=["GET"]),
        Route("/v1/responses", create, methods=["POST"]),
        Route("/v1/responses/{id}", one, methods=["GET", "DELETE"]),
    ]


def listed(items: list[Item], request: Request) -> Event:
    """A page of input items, newest first unless `order` is asc; `after` is the id of the last one seen."""
    query = request.query_params
    found = [input_item(item, f"item_{i}") for i, item in enumerate(items)]
    if query.get("order", "desc") != "asc":
        found.reverse()
    ids = [item["id"] for item in found]
    after = query.get("after")
    if after is not None and after not in ids:
        raise HttpError(400, f"after {after!r} is none of the items", "after")
    limit = query.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= 100):
        raise HttpError(400, f"limit {limit!r} must be a number from 1 to 100", "limit")
    rest = found[0 if after is None else ids.index(after) + 1:]
    page = rest[:int(limit)]
    return {"object": "list", "data": page, "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None, "has_more": len(page) < len(rest)}


def input_item(item: Item, id: str) -> Item:
    """An item as it is listed: with an id, its kind, and a text as a part."""
    found: Item = {"id": id, "type": "message", "status": "completed", **item}
    if found["type"] == "message" and isinstance(found["content"], str):
        kind = "output_text" if found["role"] == "assistant" else "input_text"
        more: Item = {"annotations": []} if kind == "output_text" else {}
        found["content"] = [{"type": kind, "text": found["content"], **more}]
    return found


async def streamed(
    pieces: AsyncGenerator[Delta, None], stream: Stream, done: Callable[[], None],
) -> AsyncGenerator[bytes, None]:
    """The events of a response as they come; it is `done` before its last event is sent."""
    try:
        for event in stream.start():
            yield sse.event(event, event["type"])
        async for delta in pieces:
            events = [*stream.push(delta)]
            if stream.response["status"] != "in_progress":
                done()
            for event in events:
                yield sse.event(event, event["type"])
    finally:
        await pieces.aclose()


async def whole(pieces: AsyncGenerator[Delta, None], stream: Stream, done: Callable[[], None]) -> Event:
    """The response at once. Raises what breaks the answer off."""
    try:
        async for delta in pieces:
            raise_broken(delta)
            for _ in stream.push(delta):
                pass
    finally:
        await pieces.aclose()
    done()
    return stream.response
