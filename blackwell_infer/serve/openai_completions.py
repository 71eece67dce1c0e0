"""/v1/completions, /tokenize and /detokenize: plain text and token ids."""
from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blackwell_infer.engine.request import make_request
from blackwell_infer.engine.stream import AsyncStream
from blackwell_infer.errors import BlackwellInferError, RequestError
from blackwell_infer.serve import sse
from blackwell_infer.serve.errors import HttpError, openai_body
from blackwell_infer.serve.host import Host, attended
from blackwell_infer.serve.openai_chat import IGNORED, Common, finish_of, to_sampling, usage_body
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import Event, TokenLogprob, Usage

MOST_LOGPROBS = 20


class CompletionBody(Common, frozen=True, kw_only=True):
    prompt: str | list[Any]
    max_tokens: int | None = 16
    echo: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    model: str | None = None
    add_special_tokens: bool = True


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    tokens: list[int]
    model: str | None = None


class Text(msgspec.Struct, kw_only=True):
    """One choice as it grows."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """An event of the choice `index`, counted over all prompts; `failure` says what broke it off."""

    index: int
    event: Event
    failure: BlackwellInferError | None


def routes(host: Host) -> list[Route]:
    async def completions(request: Request) -> Response:
        body = await host.read(request, CompletionBody, IGNORED)
        host.check_model(body.model)
        prompts = to_prompts(body.prompt)
        check(body, len(prompts), host)
        streams = await submitted(host, body, prompts)
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
                "model": host.name}
        echoed = [host.llm.tokenizer.decode(s.request.prompt) if body.echo else "" for s in streams]
        pieces = merged(streams, body.n)
        if body.stream:
            return sse.response(stream(pieces, body, head, echoed, host.llm.tokenizer))
        return JSONResponse(await attended(request, whole(pieces, body, head, echoed, host.llm.tokenizer)))

    async def tokenize(request: Request) -> Response:
        body = await host.read(request, TokenizeBody)
        host.check_model(body.model)
        ids = host.llm.tokenizer.encode(body.text, bos=None if body.add_special_tokens else False)
        return JSONResponse({"tokens": list(ids), "count": len(ids), "max_model_len": host.llm.info().max_context})

    async def detokenize(request: Request) -> Response:
        body = await host.read(request, DetokenizeBody)
        host.check_model(body.model)
        vocab = host.llm.info().vocab
        wrong = next((id for id in body.tokens if not 0 <= id < vocab), None)
        if wrong is not None:
            raise HttpError(400, f"tokens holds {wrong}; the vocabulary has ids 0 to {vocab - 1}", "tokens")
        return JSONResponse({"text": host.llm.tokenizer.decode(body.tokens)})

    return [Route("/v1/completions", completions, methods=["POST"]), Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"])]


def to_prompts(value: str | list[Any], name: str = "prompt") -> list[str | list[int]]:
    """A text, token ids, or a list of either, from the field `name`."""
    if isinstance(value, str):
        return [value]
    if value and all(isinstance(v, str) or (isinstance(v, list) and all(type(i) is int for i in v)) for v in value):
        return list(value)
    if value and all(type(v) is int for v in value):
        return [value]
    raise HttpError(400, f"{name} must be a text, a list of texts, a list of token ids, or a list of such lists", name)


def check(body: CompletionBody, prompts: int, host: Host) -> None:
    """What cannot be done together."""
    if prompts * body.n > host.config.max_choices:
        raise HttpError(400, f"{prompts} prompts with n = {body.n}; at most {host.config.max_choices} answers to one "
                        "request (max_choices)", "prompt" if prompts > 1 else "n")
    if body.echo and body.logprobs is not None:
        raise HttpError(400, "log-probabilities of an echoed prompt are not supported; leave out echo", "echo")


async def submitted(host: Host, body: CompletionBody, prompts: list[str | list[int]]) -> list[AsyncStream]:
    """All prompts checked, and then under way; if one finds no room, none is."""
    sampling = msgspec.structs.replace(to_sampling(body, host.llm.default_sampling), logprobs=body.logprobs,
                                       max_tokens=body.max_tokens)
    timeout = min(body.timeout or host.config.request_timeout, host.config.request_timeout)

    def prepare() -> list[Any]:
        made = [make_request(host.llm.text, host.llm.info().vocab, prompt, sampling, {}) for prompt in prompts]
        return [msgspec.structs.replace(r, priority=body.priority, deadline=timeout) for r in made]

    streams: list[AsyncStream] = []
    try:
        for request in await asyncio.to_thread(prepare):
            streams.append(host.llm.submit(request))  # noqa: PERF401 (those already begun must be closed)
    except RequestError:
        for each in streams:
            each.close()
        raise
    return streams


async def merged(streams: list[AsyncStream], n: int) -> AsyncGenerator[Piece, None]:
    """The events of all streams as they come."""
    queue: asyncio.Queue[Piece | None] = asyncio.Queue()

    async def drain(place: int, source: AsyncStream) -> None:
        try:
            async for event in source:
                failure = None if event.error is None else source.failure or BlackwellInferError(event.error)
                queue.put_nowait(Piece(index=place * n + event.index, event=event, failure=failure))
        finally:
            queue.put_nowait(None)

    tasks = [asyncio.ensure_future(drain(i, s)) for i, s in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            piece = await queue.get()
            if piece is None:
                left -= 1
            else:
                yield piece
    finally:
        for task, source in zip(tasks, streams, strict=True):
            task.cancel()
            source.close()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def added(one: Usage, other: Usage) -> Usage:
    """Token counts of both."""
    return Usage(prompt_tokens=one.prompt_tokens + other.prompt_tokens,
                 completion_tokens=one.completion_tokens + other.completion_tokens,
                 cached_tokens=one.cached_tokens + other.cached_tokens)


def logprobs_body(items: tuple[TokenLogprob, ...], tokenizer: Tokenizer, offset: int) -> dict[str, Any]:
    """Log-probabilities in the older form; `offset` is where in the text the first token begins."""
    texts = [tokenizer.piece(i.token_id).decode("utf-8", "replace") for i in items]
    offsets = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
    top = [{tokenizer.piece(id).decode("utf-8", "replace"): value for id, value in i.top} for i in items]
    return {"tokens": texts, "token_logprobs": [i.logprob for i in items], "top_logprobs": top,
            "text_offset": offsets}


async def whole(pieces: AsyncGenerator[Piece, None], body: CompletionBody, head: Mapping[str, Any],
                echoed: list[str], tokenizer: Tokenizer) -> dict[str, Any]:
    """A text_completion."""
    texts = [Text(text=echoed[i // body.n]) for i in range(len(echoed) * body.n)]
    usage = Usage()
    try:
        async for piece in pieces:
            if piece.failure is not None:
                raise piece.failure
            text = texts[piece.index]
            text.text += piece.event.text + piece.event.reasoning
            text.logprobs += piece.event.logprobs
            text.finish = piece.event.finish_reason or text.finish
            usage = added(usage, piece.event.usage) if piece.event.usage else usage
    finally:
        await pieces.aclose()
    choices = [{"index": i, "text": t.text, "finish_reason": finish_of(t.finish),
                "logprobs": None if body.logprobs is None else logprobs_body(t.logprobs, tokenizer, 0)}
               for i, t in enumerate(texts)]
    return {**head, "choices": choices, "usage": usage_body(usage)}


async def stream(pieces: AsyncGenerator[Piece, None], body: CompletionBody, head: Mapping[str, Any],
                 echoed: list[str], tokenizer: Tokenizer) -> AsyncGenerator[bytes, None]:
    """text_completion events, the usage if wanted, [DONE]."""
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    shared = {**head, **({"usage": None} if wants_usage else {})}
    usage, begun = Usage(), dict[int, int]()
    try:
        async for piece in pieces:
            if piece.failure is not None:
                yield sse.event(openai_body(piece.failure))
                return
            event, i = piece.event, piece.index
            usage = added(usage, event.usage) if event.usage else usage
            text = ("" if i in begun else echoed[i // body.n]) + event.text
            at = begun.get(i, 0)
            begun[i] = at + len(text)
            if text or event.finish_reason or event.logprobs:
                logprobs = None if body.logprobs is None else logprobs_body(event.logprobs, tokenizer, at)
                yield sse.event({**shared, "choices": [{"index": i, "text": text, "logprobs": logprobs,
                                                        "finish_reason": finish_of(event.finish_reason)}]})
        if wants_usage:
            yield sse.event({**shared, "choices": [], "usage": usage_body(usage)})
        yield sse.DONE
    finally:
        await pieces.aclose()
