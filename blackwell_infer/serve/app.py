"""The application: routes of every API, and what stands before them."""
from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from blackwell_infer.errors import BlackwellInferError
from blackwell_infer.log import logger
from blackwell_infer.serve import (
    anthropic,
    anthropic_models,
    chat_page,
    metrics,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
    openapi,
)
from blackwell_infer.serve.access import ANTHROPIC_HEADER, HEADER, AccessLog
from blackwell_infer.serve.errors import HttpError, anthropic_form, error_response, status_of
from blackwell_infer.serve.host import Host
from blackwell_infer.serve.security import Guard


def make_app(host: Host, more: Sequence[BaseRoute] = ()) -> Starlette:
    """The server's application over a loaded model."""
    middleware = [Middleware(AccessLog, failed=failed), Middleware(Guard, host=host)]
    if host.config.cors_origin:
        middleware.insert(1, Middleware(CORSMiddleware, allow_origins=list(host.config.cors_origin),
                                        allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"],
                                        expose_headers=[HEADER, ANTHROPIC_HEADER]))
    return Starlette(
        routes=[*routes(host), *openai_chat.routes(host), *openai_completions.routes(host), *metrics.routes(host),
                *openai_embeddings.routes(host), *openai_responses.routes(host), *anthropic.routes(host),
                *openapi.routes(host), *chat_page.routes(), *more],
        middleware=middleware, exception_handlers={BlackwellInferError: failed, HTTPException: refused})


def routes(host: Host) -> list[BaseRoute]:
    """What belongs to no API of its own."""
    async def models(request: Request) -> Response:
        if anthropic_form(request):
            return JSONResponse(anthropic_models.listed(host, request.query_params))
        return JSONResponse({"object": "list", "data": [model_body(host)]})

    async def model(request: Request) -> Response:
        host.check_model(request.path_params["name"])
        return JSONResponse(anthropic_models.one(host) if anthropic_form(request) else model_body(host))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        return JSONResponse({"status": "draining" if host.draining else "ready"}, 503 if host.draining else 200)

    return [Route("/v1/models", models), Route("/v1/models/{name:path}", model), Route("/health", health),
            Route("/ready", ready)]


def model_body(host: Host) -> dict[str, object]:
    """The served model as /v1/models shows it."""
    return {"id": host.name, "object": "model", "created": host.created, "owned_by": "blackwell_infer"}


async def failed(request: Request, error: Exception) -> Response:
    """The answer to a request that raised. What nobody foresaw is logged, without the request's text."""
    if status_of(error) == 500:
        logger.error("%s %s failed: %s", request.method, request.url.path, type(error).__name__, exc_info=error)
    return error_response(request, error)


async def refused(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the shape of the request's API."""
    assert isinstance(error, HTTPException)
    answer = error_response(request, HttpError(error.status_code, error.detail))
    answer.headers.update(error.headers or {})  # at 405, which methods there are
    return answer
