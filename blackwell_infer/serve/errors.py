"""Typed errors as HTTP statuses and as the bodies of each API."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from blackwell_infer.errors import BlackwellInferError, DeadlineError, QueueFullError, RequestError, TemplateError

RETRY_SECONDS = 1
"""What a client is told to wait where the queue is full: a queue of short answers moves within it."""

OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "server_error"}
ANTHROPIC_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
                   413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"}
REQUEST_ID = "blackwell_infer.request_id"
"""Where the scope of a request has its id"""


class HttpError(BlackwellInferError):
    """A request that is refused with this status. `param` names the field, `code` is a word for programs, `details` is
    what Anthropic's clients go by."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
                 details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.details = status, param, code, details


def status_of(error: Exception) -> int:
    """The HTTP status of an error; what nobody foresaw is 500."""
    if isinstance(error, HttpError):
        return error.status
    if isinstance(error, QueueFullError):
        return 429
    if isinstance(error, DeadlineError):
        return 504
    return 400 if isinstance(error, RequestError | TemplateError) else 500


def message_of(error: Exception) -> str:
    """What a client may read: messages of typed errors, and nothing about others."""
    return str(error) if isinstance(error, BlackwellInferError) else "an unexpected error; the server's log has it"


def openai_body(error: Exception) -> dict[str, Any]:
    """{"error": {"message", "type", "param", "code"}}."""
    status = status_of(error)
    kind = OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param, code = (error.param, error.code) if isinstance(error, HttpError) else (None, None)
    return {"error": {"message": message_of(error), "type": kind, "param": param, "code": code}}


def anthropic_body(error: Exception, request_id: str | None) -> dict[str, Any]:
    """{"type": "error", "error": {"type", "message"}, "request_id"}."""
    status = status_of(error)
    kind = ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    details = {"details": error.details} if isinstance(error, HttpError) and error.details else {}
    return {"type": "error", "error": {"type": kind, "message": message_of(error), **details}, "request_id": request_id}


def anthropic_form(request: Request) -> bool:
    """Whether Anthropic's API is spoken: by the path, or by the header that its clients always send."""
    return request.url.path.startswith("/v1/messages") or "anthropic-version" in request.headers


def request_id_of(request: Request) -> str | None:
    """The id that its answer shows."""
    id: str | None = request.scope.get(REQUEST_ID)
    return id


def error_response(request: Request, error: Exception) -> Response:
    """The answer to a request that failed, in the shape of its API."""
    status = status_of(error)
    body = anthropic_body(error, request_id_of(request)) if anthropic_form(request) else openai_body(error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
    return JSONResponse(body, status, headers)


def invalid(error: msgspec.ValidationError) -> HttpError:
    """A value of the wrong type or out of range: the message, with the path that the library found as `param`."""
    text, _, place = str(error).replace("`", "").partition(" - at ")
    param = place.removeprefix("$").removeprefix(".") or None
    return HttpError(400, f"{param}: {text}" if param else text, param)
