"""Who may ask: keys, and nothing new while the server is about to end."""
from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from blackwell_infer.serve.errors import HttpError, error_response
from blackwell_infer.serve.host import Host

OPEN = ("/", "/page/chat.css", "/page/chat.js", "/health", "/ready")
"""Paths that need no key."""


class Guard:
    """ASGI middleware: 401 without a valid key, 403 for pages of other origins, 503 while draining."""

    def __init__(self, app: ASGIApp, host: Host) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._refusal(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await error_response(Request(scope), error)(scope, receive, send)

    def _refusal(self, scope: Scope) -> HttpError | None:
        if scope["path"] in OPEN:
            return None
        keys = self._host.config.api_key
        if keys and not known(shown(Request(scope)), keys):
            return HttpError(401, "no valid API key: send Authorization: Bearer KEY, or x-api-key: KEY",
                             code="invalid_api_key")
        if foreign(scope, self._host.config.cors_origin):
            return HttpError(403, "pages of other origins may not use this server; allow theirs with cors_origin")
        if self._host.draining:
            return HttpError(503, "the server is shutting down")
        return None


def foreign(scope: Scope, allowed: Sequence[str]) -> bool:
    """Whether a page of another origin has a browser do something here. Browsers ask before they send JSON, but not
    before they send text that is JSON."""
    headers = Request(scope).headers
    return (scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") in ("cross-site", "same-site")
            and not {"*", headers.get("origin", "")} & set(allowed))


def shown(request: Request) -> list[str]:
    """The keys that a request shows."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return [k for k in (key.strip() if scheme.lower() == "bearer" else "", request.headers.get("x-api-key", "")) if k]


def known(given: Iterable[str], keys: Sequence[str]) -> bool:
    """Whether one of them is right; takes as long for a key that is nearly right as for any other."""
    return sum(hmac.compare_digest(g.encode(), k.encode()) for g in given for k in keys) > 0
