"""/v1/completions, /tokenize and /detokenize: plain text and token ids."""
from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blackwell_infer.engine.request import Request as Prompt
from blackwell_infer.engine.request import make_request
from blackwell_infer.engine.stream import AsyncStream
from blackwell_infer.errors import BlackwellInferError, RequestError
from blackwell_infer.serve import sse
from blackwell_infer.serve.errors import HttpError, openai_body
from blackwell_infer.serve.host import Host, attended
from blackwell_infer.serve.openai_chat import IGNORED, Common, to_grammar, to_sampling, usage_body
from blackwell_infer.serve.openai_echo import Echo, echoed, joined, logprobs_body
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import Event, TokenLogprob, Usage

MOST_LOGPROBS = 20


class CompletionBody(Common, frozen=True, kw_only=True):
    prompt: str | list[Any]
    max_tokens: int | None = 16
    echo: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None

    @property
    def tries(self) -> int:
        """Answers that are made to each prompt."""
        return self.best_of or self.n


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    model: str | None = None
    add_special_tokens: bool = True


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    tokens: list[int]
    model: str | None = None


class Text(msgspec.Struct, kw_only=True):
    """One choice as it grows, without what is echoed."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None

    @property
    def worth(self) -> float:
        """Its log-probability per token."""
        return sum(item.logprob for item in self.logprobs) / max(len(self.logprobs), 1)


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
        requests = await asyncio.to_thread(prepared, host, body, prompts)
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
                "model": host.name}
        echoes = await attended(request, echoed(host, [r.prompt for r in requests] if body.echo else [], body.logprobs,
                                                waiting(host, body)))
        if body.max_tokens == 0:
            usage = Usage(prompt_tokens=sum(len(r.prompt) for r in requests))
            texts = [Text(finish="length") for _ in range(len(requests) * body.tries)]
            return JSONResponse(completion(texts, usage, body, head, echoes, host.llm.tokenizer))
        pieces = merged(submitted(host, requests), body.tries)
        if body.stream:
            return sse.response(stream(pieces, body, head, echoes, host.llm.tokenizer))
        texts, usage = await attended(request, gathered(pieces, len(requests) * body.tries))
        return JSONResponse(completion(texts, usage, body, head, echoes, host.llm.tokenizer))

    async def tokenize(request: Request) -> Response:
        body = await host.read(request, TokenizeBody)
        host.check_model(body.model)
        ids = await asyncio.to_thread(host.llm.tokenizer.encode, body.text,
                                      bos=None if body.add_special_tokens else False)
        return JSONResponse({"tokens": list(ids), "count": len(ids), "max_model_len": host.llm.info().max_context})

    async def detokenize(request: Request) -> Response:
        body = await host.read(request, DetokenizeBody)
        host.check_model(body.model)
        vocab = host.llm.info().vocab
        wrong = next((id for id in body.tokens if not 0 <= id < vocab), None)
        if wrong is not None:
            raise HttpError(400, f"tokens holds {wrong}; the vocabulary has ids 0 to {vocab - 1}", "tokens")
        return JSONResponse({"text": await asyncio.to_thread(host.llm.tokenizer.decode, body.tokens)})

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
    if prompts * body.tries > host.config.max_choices:
        name = "prompt" if prompts > 1 else "best_of" if body.tries > body.n else "n"
        raise HttpError(400, f"{prompts} prompts with {body.tries} answers to each; at most {host.config.max_choices} "
                        "answers to one request (max_choices)", name)
    if body.tries < body.n:
        raise HttpError(400, f"best_of is {body.best_of}, less than n, which is {body.n}", "best_of")
    if body.tries > body.n and body.stream:
        raise HttpError(400, "the best of several answers is known at their end only; leave out stream", "best_of")
    if body.max_tokens == 0 and (not body.echo or body.stream):
        raise HttpError(400, "max_tokens is 0, which is for echo without stream", "max_tokens")


def waiting(host: Host, body: CompletionBody) -> float:
    """Seconds that a request may take."""
    return min(body.timeout or host.config.request_timeout, host.config.request_timeout)


def prepared(host: Host, body: CompletionBody, prompts: list[str | list[int]]) -> list[Prompt]:
    """All prompts, checked."""
    ranked = body.tries > body.n and body.logprobs is None
    sampling = msgspec.structs.replace(to_sampling(body, host.llm.default_sampling), n=body.tries,
                                       logprobs=0 if ranked else body.logprobs, max_tokens=body.max_tokens or None,
                                       grammar=to_grammar(body.response_format))
    made = [make_request(host.llm.text, host.llm.info().vocab, prompt, sampling, {}) for prompt in prompts]
    return [msgspec.structs.replace(r, priority=body.priority, deadline=waiting(host, body)) for r in made]


def submitted(host: Host, requests: Sequence[Prompt]) -> list[AsyncStream]:
    """All prompts under way; if one finds no room, none is."""
    streams: list[AsyncStream] = []
    try:
        for request in requests:
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
                queue.put_nowait(Piece(index=place * n + event.index, event=event, failure=broken(event, source)))
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


def broken(event: Event, source: AsyncStream) -> BlackwellInferError | None:
    """What broke a choice off, if this event says that something did."""
    if event.error is not None:
        return source.failure or BlackwellInferError(event.error)
    return HttpError(503, "the answer was cancelled") if event.finish_reason == "cancelled" else None


def added(one: Usage, other: Usage) -> Usage:
    """Token counts of both."""
    return Usage(prompt_tokens=one.prompt_tokens + other.prompt_tokens,
                 completion_tokens=one.completion_tokens + other.completion_tokens,
                 cached_tokens=one.cached_tokens + other.cached_tokens)


async def gathered(pieces: AsyncGenerator[Piece, None], count: int) -> tuple[list[Text], Usage]:
    """All choices at their end, and what they cost. Raises what broke one off."""
    texts, usage = [Text() for _ in range(count)], Usage()
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
    return texts, usage


def completion(texts: Sequence[Text], usage: Usage, body: CompletionBody, head: Mapping[str, Any],
               echoes: Sequence[Echo], tokenizer: Tokenizer) -> dict[str, Any]:
    """A text_completion: of the tries to each prompt the best."""
    choices: list[dict[str, Any]] = []
    for place in range(0, len(texts), body.tries):
        made = texts[place : place + body.tries]
        best = sorted(made, key=lambda text: -text.worth)[: body.n] if body.tries > body.n else made
        echo = echoes[place // body.tries] if echoes else Echo()
        choices += [{"index": len(choices) + i, "text": echo.text + t.text, "finish_reason": t.finish,
                     "logprobs": None if body.logprobs is None else joined(
                         echo.logprobs, logprobs_body(t.logprobs, tokenizer, len(echo.text)))}
                    for i, t in enumerate(best)]
    return {**head, "choices": choices, "usage": usage_body(usage)}


async def stream(pieces: AsyncGenerator[Piece, None], body: CompletionBody, head: Mapping[str, Any],
                 echoes: Sequence[Echo], tokenizer: Tokenizer) -> AsyncGenerator[bytes, None]:
    """text_completion events, the first of each choice with what is echoed, the usage if wanted, [DONE]."""
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
            echo = echoes[i // body.n] if echoes and i not in begun else Echo()
            at = begun.get(i, len(echo.text))
            begun[i] = at + len(event.text)
            text = echo.text + event.text
            if text or event.finish_reason or event.logprobs:
                logprobs = None if body.logprobs is None else joined(
                    echo.logprobs, logprobs_body(event.logprobs, tokenizer, at))
                yield sse.event({**shared, "choices": [{"index": i, "text": text, "logprobs": logprobs,
                                                        "finish_reason": event.finish_reason}]})
        if wants_usage:
            yield sse.event({**shared, "choices": [], "usage": usage_body(usage)})
        yield sse.DONE
    finally:
        await pieces.aclose()
