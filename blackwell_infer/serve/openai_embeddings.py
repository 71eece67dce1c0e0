"""/v1/embeddings: vectors of texts, made by the served model."""
from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blackwell_infer.engine.embedding import Pooling, Vector, scaled
from blackwell_infer.engine.request import make_request
from blackwell_infer.errors import DeadlineError
from blackwell_infer.serve.errors import HttpError
from blackwell_infer.serve.host import Host, attended
from blackwell_infer.serve.openai_chat import IGNORED
from blackwell_infer.serve.openai_completions import to_prompts

MOST_INPUTS = 2048
"""Most texts of one request, as OpenAI's documents have it"""


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True):
    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    pooling: Pooling = "last"


def routes(host: Host) -> list[Route]:
    async def embeddings(request: Request) -> Response:
        body = await host.read(request, EmbeddingBody, IGNORED)
        host.check_model(body.model)
        prompts = to_prompts(body.input, "input")
        if len(prompts) > MOST_INPUTS:
            raise HttpError(400, f"{len(prompts)} inputs; at most {MOST_INPUTS} in one request", "input")
        ids = await asyncio.to_thread(encoded, host, prompts)
        vectors = shortened(await attended(request, embedded(host, ids, body.pooling)), body.dimensions)
        return JSONResponse(embedding_list(vectors, body.encoding_format, host.name, sum(map(len, ids))))

    return [Route("/v1/embeddings", embeddings, methods=["POST"])]


def encoded(host: Host, prompts: list[str | list[int]]) -> list[list[int]]:
    """Token ids of texts, with the model's beginning token if it has one, as completions have them."""
    text, vocab, sampling = host.llm.text, host.llm.info().vocab, host.llm.default_sampling
    return [list(make_request(text, vocab, prompt, sampling, {}).prompt) for prompt in prompts]


async def embedded(host: Host, ids: list[list[int]], pooling: Pooling) -> Vector:
    """The vectors [N, H]. DeadlineError after the server's `request_timeout`."""
    seconds = host.config.request_timeout
    try:
        return await asyncio.wait_for(host.llm.aembed(ids, pooling), seconds)
    except TimeoutError:
        raise DeadlineError(f"the embeddings were not made within {seconds:g} seconds; send fewer or shorter texts at "
                            "once") from None


def shortened(vectors: Vector, size: int | None) -> Vector:
    """The first `size` numbers of each vector, scaled to length 1 again. HttpError 400 if they have fewer."""
    if size is None:
        return vectors
    if size > vectors.shape[1]:
        raise HttpError(400, f"dimensions is {size}; the model's vectors have {vectors.shape[1]}", "dimensions")
    return np.stack([scaled(vector[:size]) for vector in vectors])


def embedding_list(vectors: Vector, form: str, model: str, tokens: int) -> dict[str, Any]:
    """OpenAI's answer; base64 holds little-endian float32."""
    values = [base64.b64encode(v.astype("<f4").tobytes()).decode() if form == "base64" else v.tolist() for v in vectors]
    return {"object": "list", "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "data": [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(values)]}
