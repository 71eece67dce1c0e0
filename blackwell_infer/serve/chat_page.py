"""The page at `/`: a chat in the browser, of three files that the package brings."""
from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
FILES = {"/": ("index.html", "text/html"), "/page/chat.css": ("chat.css", "text/css"),
         "/page/chat.js": ("chat.js", "text/javascript")}
HEADERS = {
    # Nothing but these files, and requests to this server alone: what a model writes cannot load or run anything.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    """The page's files, read once."""
    return [route(path, (FOLDER / name).read_bytes(), kind) for path, (name, kind) in FILES.items()]


def route(path: str, content: bytes, kind: str) -> Route:
    """One file at its path."""
    async def file(request: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return Route(path, file)
