"""What every chat API is a translation of and to: an `Ask` goes in, `Delta`s come out."""
from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any, Literal

import msgspec

from blackwell_infer.engine.request import Request, chat_request
from blackwell_infer.engine.stream import AsyncStream
from blackwell_infer.errors import BlackwellInferError
from blackwell_infer.serve.errors import HttpError
from blackwell_infer.serve.host import Host
from blackwell_infer.text.template import ChatTemplate
from blackwell_infer.text.tools import CallArguments, CallStart, Dialect, Parser, Piece, ToolChoice
from blackwell_infer.types import Event, Grammar, Message, Sampling, TokenLogprob, Tool, ToolCall, Usage

Finish = Literal["stop", "length", "tool_calls", "cancelled", "error"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORTS: Mapping[Effort, int] = {"low": 1024, "medium": 4096}
"""Most tokens of reasoning where a template does not know of efforts; more effort has no limit"""
OFF: tuple[Effort, ...] = ("none", "minimal")
"""Efforts that switch reasoning off"""
RESERVED = frozenset({"self", "messages", "tools", "add_generation_prompt", "continue_final"})
"""What no variable of a request may be named: parameters of the rendering"""
Call = CallStart | CallArguments


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """Whether and how much the model reasons before it answers; None leaves it to the template. Where the template
    knows no `effort`, it is a budget of tokens (`EFFORTS`), unless the sampling has one."""

    enabled: bool | None = None
    effort: Effort | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request of any chat API. `prefill`: the last message, the assistant's, is continued. `variables` reach the
    chat template. `timeout` is in seconds; higher `priority` goes first."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = "auto"
    parallel: bool = True
    sampling: Sampling = Sampling()
    thinking: Thinking = Thinking()
    prefill: bool = False
    timeout: float | None = None
    priority: int = 0
    variables: Mapping[str, Any] = {}


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of choice `index`. Its last one has `finish`, and `stop` where a stop string ended it; the last of all
    has `usage`. `failure` says what broke the choice off. `thought_tokens` more tokens were found to be reasoning."""

    index: int = 0
    text: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: tuple[int, ...] = ()
    thought_tokens: int = 0
    finish: Finish | None = None
    stop: str | None = None
    usage: Usage | None = None
    failure: BlackwellInferError | None = None


class Reply(msgspec.Struct, kw_only=True):
    """A whole choice."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: tuple[int, ...] = ()
    thought_tokens: int = 0
    finish: Finish = "cancelled"
    stop: str | None = None


async def converse(host: Host, ask: Ask) -> AsyncGenerator[Delta, None]:
    """Start an answer: `deltas = await converse(host, ask)`. Closing the generator cancels it.

    RequestError, TemplateError, QueueFullError, HttpError: nothing was started.
    """
    request = await asyncio.to_thread(prepare, host, ask)
    return deltas(host, ask, host.llm.submit(request))


async def gather(pieces: AsyncIterator[Delta]) -> tuple[tuple[Reply, ...], Usage]:
    """Wait for the end: the choices in order, and what they cost. Raises what broke a choice off."""
    replies: dict[int, Reply] = {}
    calls: dict[int, list[list[str]]] = {}
    usage = Usage()
    async for delta in pieces:
        raise_broken(delta)
        reply = replies.setdefault(delta.index, Reply())
        reply.text += delta.text
        reply.reasoning += delta.reasoning
        reply.logprobs += delta.logprobs
        reply.token_ids += delta.token_ids
        reply.thought_tokens += delta.thought_tokens
        made = calls.setdefault(delta.index, [])
        for call in delta.calls:
            if isinstance(call, CallStart):
                made.append([call.id, call.name, ""])
            else:
                made[call.index][2] += call.delta
        if delta.finish is not None:
            reply.finish, reply.stop = delta.finish, delta.stop
            reply.calls = tuple(ToolCall(id=id, name=name, arguments=text) for id, name, text in made)
        usage = delta.usage or usage
    return tuple(replies[i] for i in sorted(replies)), usage


def thinking_of(enabled: bool | None, effort: Effort | None, budget: int | None) -> Thinking:
    """What OpenAI's fields say about reasoning: if it is not switched as such, an effort or a budget does."""
    if enabled is None and effort is not None:
        enabled = effort not in OFF
    elif enabled is None and budget is not None:
        enabled = budget > 0
    return Thinking(enabled=enabled, effort=effort)


def broken(delta: Delta) -> BlackwellInferError | None:
    """What broke the answer off, if this piece says that something did: a half answer is no answer."""
    if delta.failure is None and delta.finish in ("error", "cancelled"):
        return HttpError(503, "the answer was cancelled")
    return delta.failure


def raise_broken(delta: Delta) -> None:
    """Raise what broke the answer off, if anything did."""
    failure = broken(delta)
    if failure is not None:
        raise failure


def count(host: Host, ask: Ask) -> int:
    """The number of tokens of the prompt."""
    return len(host.llm.tokenizer.encode(rendered(host, ask), bos=False))


def rendered(host: Host, ask: Ask) -> str:
    """The prompt as text."""
    options = dict(ask.variables)
    if ask.thinking.enabled is not None:
        options["enable_thinking"] = ask.thinking.enabled
    if ask.thinking.effort is not None:
        options["reasoning_effort"] = ask.thinking.effort
    tools = [{"type": "function", "function": {"name": t.name, "description": t.description,
                                               "parameters": t.parameters}} for t in ask.tools]
    taken = RESERVED & options.keys()
    if taken:
        raise HttpError(400, f"a template variable must not be named {min(taken)}", "chat_template_kwargs")
    return host.llm.text.prompt(ask.messages, tools=tools or None, continue_final=ask.prefill, **options)


def prepare(host: Host, ask: Ask) -> Request:
    """The request to the engine: prompt, grammar and limits."""
    text, vocab = host.llm.text, host.llm.info().vocab
    if ask.sampling.n > host.config.max_choices:
        raise HttpError(400, f"n is {ask.sampling.n}; at most {host.config.max_choices} (max_choices)", "n")
    prompt = rendered(host, ask)
    budget = thinking_budget(host.llm.template, ask)
    grammar = constraint(host.dialect, ask, text.before_answer(prompt), text.starts_inside(prompt))
    request = chat_request(text, vocab, prompt,
                           msgspec.structs.replace(ask.sampling, grammar=grammar, thinking_budget=budget))
    timeout = min(ask.timeout or host.config.request_timeout, host.config.request_timeout)
    return msgspec.structs.replace(request, priority=ask.priority, deadline=timeout)


def thinking_budget(template: ChatTemplate | None, ask: Ask) -> int | None:
    """Most tokens of reasoning."""
    if ask.sampling.thinking_budget is not None or ask.thinking.effort is None:
        return ask.sampling.thinking_budget
    told = template is not None and "reasoning_effort" in template.source
    return None if told else EFFORTS.get(ask.thinking.effort)


def constraint(dialect: Dialect | None, ask: Ask, reasoning: tuple[str, str] | None, inside: bool) -> Grammar | None:
    """The grammar of the answer: with tools of the whole answer, its reasoning included, else of what follows that."""
    own = ask.sampling.grammar
    if not ask.tools:
        return own
    if dialect is None:
        raise HttpError(400, "this model's chat template teaches no known way to call tools", "tools")
    return dialect.grammar(ask.tools, ask.choice, ask.parallel, reasoning, inside, own)


async def deltas(host: Host, ask: Ask, stream: AsyncStream) -> AsyncGenerator[Delta, None]:
    """The events of a stream as deltas."""
    choices = [Reading(host, ask) for _ in range(ask.sampling.n)]
    try:
        async for event in stream:
            yield choices[event.index].read(event, stream)
    finally:
        stream.close()


class Reading:
    """One choice on its way: takes tool calls out of its text, and finds what stopped it."""

    def __init__(self, host: Host, ask: Ask) -> None:
        calls = ask.tools and ask.choice != "none" and host.dialect is not None
        self._parser: Parser | None = host.dialect.Parser(ask.tools) if calls and host.dialect else None
        self._tokenizer = host.llm.tokenizer
        self._stops = ask.sampling.stop
        self._ids: list[int] = []
        self._called = False
        self._held = 0

    def read(self, event: Event, stream: AsyncStream) -> Delta:
        text = event.text
        calls: tuple[Call, ...] = ()
        if self._parser is not None:
            pieces = self._parser.push(event.text) if event.text else ()
            if event.finish_reason is not None:
                pieces += self._parser.flush()
            text = "".join(p for p in pieces if isinstance(p, str))
            calls = tuple(called(pieces))
            self._called = self._called or bool(calls)
        if self._stops:
            self._ids += event.token_ids
        finish: Finish | None = event.finish_reason
        if finish == "stop" and self._called:
            finish = "tool_calls"
        failure = None if event.error is None else stream.failure or BlackwellInferError(event.error)
        return Delta(index=event.index, text=text, reasoning=event.reasoning, calls=calls, logprobs=event.logprobs,
                     token_ids=event.token_ids, thought_tokens=self._thought(event), finish=finish,
                     usage=event.usage, failure=failure,
                     stop=self._stopped() if event.finish_reason == "stop" else None)

    def _thought(self, event: Event) -> int:
        """Tokens now known to be reasoning: those that came with it, and those held back until it showed."""
        self._held += len(event.token_ids)
        thought = self._held if event.reasoning else 0
        if event.reasoning or event.text:
            self._held = 0
        return thought

    def _stopped(self) -> str | None:
        """The stop string that the answer holds first."""
        if not self._stops:
            return None
        text = self._tokenizer.decode(self._ids)
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found)[2] if found else None


def called(pieces: tuple[Piece, ...]) -> Iterator[Call]:
    """The pieces of calls among them."""
    for piece in pieces:
        if not isinstance(piece, str):
            yield piece
