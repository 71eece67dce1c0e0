"""One line of JSON in the log for every request, without what it says; and an id for it, which its answer shows."""
from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blackwell_infer.log import logger
from blackwell_infer.serve.errors import REQUEST_ID, anthropic_form

HEADER = "x-request-id"
ANTHROPIC_HEADER = "request-id"
GIVEN = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
"""Ids of clients that are taken over"""
LONGEST = 200
"""Letters of a path that are logged"""


class Access(msgspec.Struct, frozen=True):
    """What is logged of a request. `milliseconds` end with its last byte; `status` 0: the client left before any."""

    method: str
    path: str
    status: int
    milliseconds: float
    request_id: str


class AccessLog:
    """ASGI middleware around everything: what nobody foresaw gets its answer from `failed`, and so has an id, too."""

    def __init__(self, app: ASGIApp, failed: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self._app, self._failed = app, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        request = Request(scope)
        id = scope[REQUEST_ID] = request_id(request.headers.get(HEADER))
        headers = (HEADER, ANTHROPIC_HEADER) if anthropic_form(request) else (HEADER,)

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                for name in headers:
                    MutableHeaders(scope=message)[name] = id
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            answer = await self._failed(Request(scope), error)
            if status:
                raise  # the answer has begun: the connection must break
            await answer(scope, receive, noted)
        finally:
            spent = round(1000 * (time.perf_counter() - began), 3)
            line = Access(scope["method"], scope["path"][:LONGEST], status, spent, id)
            logger.info("%s", msgspec.json.encode(line).decode())


def request_id(given: str | None) -> str:
    """The client's own id if it is a plain word, else a new one."""
    return given if given is not None and GIVEN.fullmatch(given) else uuid.uuid4().hex
