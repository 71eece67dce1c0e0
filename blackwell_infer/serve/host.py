"""The served model: what every endpoint works on."""
from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from blackwell_infer.config import ServeConfig
from blackwell_infer.engine.llm import LLM
from blackwell_infer.serve.errors import HttpError, invalid
from blackwell_infer.text.tools import Dialect

T = TypeVar("T")
DEEPEST = 64
"""How deep the values of a body may be nested."""


class Host:
    """A loaded model under a name, its limits, and whether the server is about to end."""

    def __init__(self, llm: LLM, name: str, config: ServeConfig) -> None:
        self.llm = llm
        self.name = name
        self.config = config
        self.created = int(time.time())
        self.draining = False

    @property
    def dialect(self) -> Dialect | None:
        """How the model writes tool calls."""
        return self.llm.text.dialect

    def check_model(self, name: str | None) -> None:
        """HttpError 404 if a request names another model."""
        if name is not None and name not in (self.name, "default"):
            raise HttpError(404, f"the model {name!r} is not served here; this is {self.name!r}", "model",
                            "model_not_found")

    async def body(self, request: Request) -> dict[str, Any]:
        """The JSON object that a request brings. HttpError: 413 too large, 400 no JSON object,
        499 broken off."""
        limit = self.config.max_body
        length = request.headers.get("content-length", "")
        parts, size = [], int(length) if length.isdecimal() else 0
        if size <= limit:
            size = 0
            try:
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        break
                    parts.append(part)
            except ClientDisconnect:
                raise HttpError(499, "the client went away before its body was complete") from None
        if size > limit:
            raise HttpError(413, f"the body is larger than {limit} bytes (max_body)", code="request_too_large")
        try:
            value = msgspec.json.decode(b"".join(parts))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise HttpError(400, f"the body is no JSON: {error}") from None
        if not isinstance(value, dict):
            raise HttpError(400, "the body must be a JSON object")
        if not shallow(value, DEEPEST):
            raise HttpError(400, f"the body is nested deeper than {DEEPEST} levels")
        return value

    async def read(self, request: Request, kind: type[T], ignored: frozenset[str] = frozenset()) -> T:
        """The body as a struct. Unknown fields are a 400 that names them, except the `ignored` ones and nulls."""
        return structured(await self.body(request), kind, ignored)


def structured(value: dict[str, Any], kind: type[T], ignored: frozenset[str] = frozenset()) -> T:
    """A JSON object as a struct of `kind`; see `Host.read`. A null is the same as leaving a field out."""
    given = {key: item for key, item in value.items() if item is not None}
    known = {field.encode_name for field in msgspec.structs.fields(kind)}  # type: ignore[arg-type]
    for key in given:
        if key not in known and key not in ignored:
            raise HttpError(400, f"the field {key!r} is not supported", key, "unknown_parameter")
    try:
        return msgspec.convert({key: item for key, item in given.items() if key in known}, kind)
    except msgspec.ValidationError as error:
        raise invalid(error) from None


def shallow(value: Any, depth: int) -> bool:
    """Whether a JSON value is nested at most `depth` levels."""
    level = [value]
    for _ in range(depth):
        level = [item for v in level if isinstance(v, dict | list)
                 for item in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return True
    return False


async def attended(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client goes away meanwhile."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(left(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HttpError(499, "the client went away")
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()


async def left(request: Request) -> None:
    """Wait until the client closes the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
