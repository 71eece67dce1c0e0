"""/v1/chat/completions: translation only."""
from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blackwell_infer.serve import sse
from blackwell_infer.serve.conversation import Ask, Delta, Effort, Reply, broken, converse, gather, thinking_of
from blackwell_infer.serve.errors import HttpError, openai_body
from blackwell_infer.serve.host import Host, attended
from blackwell_infer.text.messages import read_messages
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.text.tools import CallStart, Named, ToolChoice
from blackwell_infer.types import Grammar, Message, Sampling, TokenLogprob, Tool, Usage

IGNORED = frozenset({"user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier", "verbosity",
                     "prompt_cache_retention", "extra_headers"})
"""Fields that clients send and that mean nothing here."""
LOWEST = -9999.0
"""Stands for log-probabilities that JSON cannot hold"""


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class Common(msgspec.Struct, frozen=True, kw_only=True):
    """What chat and plain completions share."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1)] = 1
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    response_format: dict[str, Any] | None = None
    timeout: Annotated[float, Meta(gt=0)] | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0


class ChatBody(Common, frozen=True, kw_only=True):
    messages: list[Any]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] = 0
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: Effort | None = None
    enable_thinking: bool | None = None
    thinking_budget: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def routes(host: Host) -> list[Route]:
    async def chat(request: Request) -> Response:
        body = await host.read(request, ChatBody, IGNORED)
        host.check_model(body.model)
        deltas = await converse(host, to_ask(body, host.llm.default_sampling))
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": host.name}
        if body.stream:
            return sse.response(stream(deltas, body, head, host.llm.tokenizer))
        replies, usage = await attended(request, gather(deltas))
        return JSONResponse(completion(replies, usage, body, head, host.llm.tokenizer))

    return [Route("/v1/chat/completions", chat, methods=["POST"])]


def to_ask(body: ChatBody, default: Sampling) -> Ask:
    """The request in the server's own terms."""
    messages = tuple(to_message(m) for m in read_messages([plain_message(m, i) for i, m in enumerate(body.messages)]))
    tools = tuple(to_tool(t, i) for i, t in enumerate(body.tools or ()))
    kwargs = dict(body.chat_template_kwargs or {})
    enabled = kwargs.pop("enable_thinking", body.enable_thinking)
    if not isinstance(enabled, bool | None):
        raise HttpError(400, "enable_thinking must be true or false", "chat_template_kwargs.enable_thinking")
    sampling = msgspec.structs.replace(
        to_sampling(body, default), logprobs=body.top_logprobs if body.logprobs else None,
        max_tokens=body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens,
        grammar=to_grammar(body.response_format),
        thinking_budget=default.thinking_budget if body.thinking_budget is None else body.thinking_budget)
    if body.top_logprobs and not body.logprobs:
        raise HttpError(400, "top_logprobs needs logprobs to be true", "top_logprobs")
    return Ask(messages=messages, tools=tools, choice=to_choice(body.tool_choice, tools),
               parallel=body.parallel_tool_calls, sampling=sampling, timeout=body.timeout, priority=body.priority,
               thinking=thinking_of(enabled, body.reasoning_effort, body.thinking_budget), variables=kwargs)


def to_sampling(body: Common, default: Sampling) -> Sampling:
    """The sampling settings; what is not given is the model's own default."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
             "seed")
    given = msgspec.structs.asdict(body)
    changes = {name: given[name] for name in names if given[name] is not None}
    if body.seed is not None:
        changes["seed"] = body.seed % (1 << 64)
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > 16:
        raise HttpError(400, "at most 16 stop strings", "stop")
    return msgspec.structs.replace(default, **changes, n=body.n, stop=stop, ignore_eos=body.ignore_eos,
                                   logit_bias=to_bias(body.logit_bias), stop_token_ids=tuple(body.stop_token_ids or ()))


def to_bias(bias: Mapping[str, float] | None) -> dict[int, float]:
    """Token ids come as texts."""
    try:
        return {int(key): value for key, value in (bias or {}).items()}
    except ValueError:
        raise HttpError(400, "the keys of logit_bias must be token ids", "logit_bias") from None


def plain_message(value: Any, index: int) -> Any:
    """A message without what other APIs' clients put beside it, and with a text for content."""
    if not isinstance(value, dict):
        return value
    place = f"messages[{index}]"
    for i, part in enumerate(value["content"] if isinstance(value.get("content"), list) else ()):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", None):
            raise HttpError(400, f"{place}.content[{i}] is of type {kind!r}: this model reads text only, and nothing "
                            "is fetched from a request", f"{place}.content")
    kept = {k: v for k, v in value.items() if k not in ("refusal", "annotations", "audio", "reasoning")}
    if kept.get("content") is None and kept.get("role") == "assistant":
        kept["content"] = ""
    return kept


def to_message(message: Message) -> Message:
    """The role "developer" is what others call "system"."""
    return msgspec.structs.replace(message, role="system") if message.role == "developer" else message


def to_tool(value: Mapping[str, Any], index: int) -> Tool:
    """A function declaration."""
    place = f"tools[{index}]"
    function = value.get("function")
    if value.get("type") != "function" or not isinstance(function, dict):
        raise HttpError(400, f'{place} must be {{"type": "function", "function": {{...}}}}', place)
    try:
        known = {k: v for k, v in function.items() if v is not None}
        tool = msgspec.convert({"strict": False, **known}, Tool)
    except msgspec.ValidationError as error:
        raise HttpError(400, f"{place}.function: {error}".replace("`", ""), place) from None
    if not tool.name or len(tool.name) > 64 or not tool.name.replace("_", "a").replace("-", "a").replace(
            ".", "a").isalnum() or not tool.name.isascii():
        raise HttpError(400, f"{place}.function.name must be 1 to 64 letters, digits, _, - or .", place)
    return tool


def to_choice(value: str | Mapping[str, Any] | None, tools: tuple[Tool, ...]) -> ToolChoice:
    """tool_choice."""
    if value is None:
        return "auto"
    if value == "auto" or value == "none":
        return "auto" if value == "auto" else "none"
    if not tools:
        raise HttpError(400, "tool_choice needs tools", "tool_choice")
    if value == "required":
        return "required"
    function = value.get("function") if isinstance(value, Mapping) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise HttpError(400, 'tool_choice must be auto, none, required or {"type": "function", "function": {"name": '
                        "...}}", "tool_choice")
    return Named(name)


def to_grammar(value: Mapping[str, Any] | None) -> Grammar | None:
    """response_format."""
    kind = None if value is None else value.get("type")
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json_object")
    if kind == "grammar":
        syntax, definition = value.get("syntax"), value.get("definition")
        if syntax in ("regex", "lark", "gbnf") and isinstance(definition, str):
            return Grammar(syntax, definition)
        raise HttpError(400, "response_format of type grammar needs a syntax, which is regex, lark or gbnf, and a "
                        "definition, a text", "response_format")
    described = value.get("json_schema")
    if kind != "json_schema" or not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
        raise HttpError(400, 'response_format must be of type text, json_object, json_schema with {"json_schema": '
                        '{"name", "schema"}}, or grammar with {"syntax", "definition"}', "response_format")
    return Grammar("json_schema", msgspec.json.encode(described["schema"]).decode())


def usage_body(usage: Usage, thought_tokens: int = 0) -> dict[str, Any]:
    """Token counts; `thought_tokens` of the answer's are reasoning."""
    return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": thought_tokens}}


def logprob_items(items: Sequence[TokenLogprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Log-probabilities of tokens and of their alternatives."""
    def one(id: int, value: float) -> dict[str, Any]:
        piece = tokenizer.piece(id)
        return {"token": piece.decode("utf-8", "replace"), "logprob": max(value, LOWEST), "bytes": list(piece)}

    return [{**one(i.token_id, i.logprob), "top_logprobs": [one(*t) for t in i.top]} for i in items]


def logprob_body(items: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """The log-probabilities of a choice."""
    return {"content": logprob_items(items, tokenizer), "refusal": None}


def completion(replies: tuple[Reply, ...], usage: Usage, body: ChatBody, head: Mapping[str, Any],
               tokenizer: Tokenizer) -> dict[str, Any]:
    """A whole chat.completion."""
    choices = []
    for i, reply in enumerate(replies):
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or (None if reply.calls else ""),
                                   "refusal": None}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.calls:
            message["tool_calls"] = [{"id": c.id, "type": "function", "function": {
                "name": c.name, "arguments": c.arguments}} for c in reply.calls]
        choices.append({"index": i, "message": message, "finish_reason": reply.finish,
                        "logprobs": logprob_body(reply.logprobs, tokenizer) if body.logprobs else None})
    thought_tokens = sum(reply.thought_tokens for reply in replies)
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage_body(usage, thought_tokens)}


def delta_body(delta: Delta, first: bool) -> dict[str, Any]:
    """The `delta` of a chunk."""
    value: dict[str, Any] = {"role": "assistant", "content": None if delta.calls else ""} if first else {}
    if delta.text:
        value["content"] = delta.text
    if delta.reasoning:
        value["reasoning_content"] = delta.reasoning
    if delta.calls:
        value["tool_calls"] = [
            {"index": c.index, "id": c.id, "type": "function", "function": {"name": c.name, "arguments": ""}}
            if isinstance(c, CallStart) else {"index": c.index, "function": {"arguments": c.delta}}
            for c in delta.calls]
    return value


async def stream(deltas: AsyncGenerator[Delta, None], body: ChatBody, head: Mapping[str, Any],
                 tokenizer: Tokenizer) -> AsyncGenerator[bytes, None]:
    """chat.completion.chunk events: the role first, then pieces, the finish, the usage if wanted, [DONE]."""
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    shared = {**head, "object": "chat.completion.chunk", **({"usage": None} if wants_usage else {})}
    begun: set[int] = set()
    usage, thought_tokens = Usage(), 0
    try:
        async for delta in deltas:
            failure = broken(delta)
            if failure is not None:
                yield sse.event(openai_body(failure))
                return
            usage = delta.usage or usage
            thought_tokens += delta.thought_tokens
            first = delta.index not in begun
            begun.add(delta.index)
            value = delta_body(delta, first)
            logprobs = logprob_body(delta.logprobs, tokenizer) if body.logprobs and delta.logprobs else None
            if value or logprobs:
                yield sse.event({**shared, "choices": [{"index": delta.index, "delta": value, "logprobs": logprobs,
                                                        "finish_reason": None}]})
            if delta.finish is not None:
                yield sse.event({**shared, "choices": [{"index": delta.index, "delta": {}, "logprobs": None,
                                                        "finish_reason": delta.finish}]})
        if wants_usage:
            yield sse.event({**shared, "choices": [], "usage": usage_body(usage, thought_tokens)})
        yield sse.DONE
    finally:
        await deltas.aclose()
