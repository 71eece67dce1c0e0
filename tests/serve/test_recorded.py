"""Every recorded stream of OpenAI and Anthropic, told again by this server: the same events in the same order.

What a recorded stream says is read into pieces of an answer, and those are streamed anew. Recordings of what this
server does not do (tools that run on a server, refusals, compaction, fallbacks, moderation) are left out by name.
"""
from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
import yaml
from api_documents import API

from blackwell_infer.serve import openai_chat, openai_completions
from blackwell_infer.serve.anthropic_reply import Stream as Messages
from blackwell_infer.serve.conversation import Delta
from blackwell_infer.serve.host import Host
from blackwell_infer.serve.openai_responses_reply import Stream as Responses
from blackwell_infer.serve.openai_responses_request import Body
from blackwell_infer.text.tools import CallArguments, CallStart
from blackwell_infer.types import Event, TokenLogprob, Usage

Told = dict[str, Any]
OTHER = {"server_tool_use", "compaction", "fallback", "mcp_tool_use", "refusal", "compaction_delta", "citations_delta"}
"""What this server never says"""
DONE: Told = {"object": "done"}


def streams() -> Iterator[tuple[str, list[Told]]]:
    """All recorded streams, by name."""
    for path in sorted(API.rglob("*")) if API.exists() else ():
        if path.suffix not in (".txt", ".sse", ".bin", ".yaml") or path.name.startswith("openapi"):
            continue
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(API))
        if path.suffix != ".yaml":
            yield name, told(text)
            continue
        for i, turn in enumerate(yaml.load(text, Loader=yaml.CSafeLoader).get("interactions", ())):
            body = turn.get("response", {}).get("body", {}).get("string")
            if isinstance(body, str) and "data: " in body:
                yield f"{name}[{i}]", told(body)


def told(text: str) -> list[Told]:
    """The data of a stream's events."""
    lines = [line.strip().removeprefix("data:").strip() for line in text.splitlines()]
    return [DONE if line == "[DONE]" else json.loads(line) for line in lines if line == "[DONE]" or line[:1] == "{"]


ALL = [(name, events) for name, events in streams() if len(events) > 1 and "incomplete_partial_json" not in name]


def of(kind: str) -> list[Any]:
    """The streams of an API that say nothing but what this server can say, as parameters."""
    found = [(name, events) for name, events in ALL if kind_of(events) == kind and not strange(events)]
    return [pytest.param(events, id=name) for name, events in found] or [pytest.param([], id="none")]


def kind_of(events: list[Told]) -> str:
    first = events[0]
    return str(first.get("object") or str(first.get("type")).partition(".")[0])


def strange(events: list[Told]) -> bool:
    words = {str(e.get(field, {}).get("type")) for e in events for field in ("content_block", "delta")
             if isinstance(e.get(field), dict)}
    reasons = {e["delta"].get("stop_reason") for e in events if e.get("type") == "message_delta"}
    deltas = {key for e in events for c in e.get("choices", ()) for key, value in c.get("delta", {}).items() if value}
    odd = sum(e.get("type") == "message_start" for e in events) > 1 or any(e.get("choices") is None and e is not DONE
                                                                          and "object" in e for e in events)
    return bool((words | reasons | deltas) & OTHER) or odd or any("_tool_result" in word for word in words)


def once(names: list[str]) -> list[str]:
    """Repeated ones once."""
    return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]


def test_most_recordings_are_told_again() -> None:
    if not API.exists():
        pytest.skip("needs the recordings of ../shared/data/api")
    kept = [name for name, events in ALL if not strange(events)]
    assert len(kept) >= 37, sorted({name for name, _ in ALL} - set(kept))


# Anthropic


def message_shape(events: list[Told]) -> list[str]:
    """Names with the kinds of blocks and deltas, without pings, which come at any time."""
    names: list[str] = []
    for event in events:
        kind = event["type"]
        if kind != "ping":
            names.append(kind + ":" * (kind != "message_delta") + str(
                event.get("content_block", {}).get("type") or (event.get("delta") or {}).get("type") or ""))
    return once(names)


def message_pieces(events: list[Told]) -> Iterator[Delta]:
    calls = -1
    for event in events:
        delta = event.get("delta", {})
        match event["type"], delta.get("type"):
            case "content_block_start", _ if event["content_block"]["type"] == "tool_use":
                calls += 1
                yield Delta(calls=(CallStart(calls, event["content_block"]["id"], event["content_block"]["name"]),))
            case "content_block_delta", "text_delta":
                yield Delta(text=delta["text"])
            case "content_block_delta", "thinking_delta":
                yield Delta(reasoning=delta["thinking"])
            case "content_block_delta", "input_json_delta":
                yield Delta(calls=(CallArguments(calls, delta["partial_json"]),))
            case "message_delta", _:
                reason = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}[delta["stop_reason"]]
                yield Delta(finish=reason, usage=Usage())  # type: ignore[arg-type]


@pytest.mark.parametrize("events", of("message_start"))
def test_messages(events: list[Told]) -> None:
    if not events:
        pytest.skip("no recordings are here")
    stream = Messages("msg_1", "demo", 1)
    again = [*stream.start(), *(event for piece in message_pieces(events) for event in stream.push(piece))]
    assert message_shape(again) == message_shape(events)
    assert sum(event["type"] == "ping" for event in again) == 1


# OpenAI


def chunk_shape(events: list[Told]) -> dict[int, list[str]]:
    """What each choice gets, in order; -1 is what comes for all of them. A role may come alone or with what follows."""
    found: dict[int, list[str]] = {}
    for event in events:
        if event is DONE or not event.get("choices"):
            if event is DONE or event.get("usage"):
                found.setdefault(-1, []).append("done" if event is DONE else "usage")
            continue
        for choice in event["choices"]:
            names = found.setdefault(choice["index"], [])
            delta = choice.get("delta", {"content": choice.get("text")})
            names += [key for key in ("role", "reasoning_content", "content", "tool_calls") if delta.get(key)]
            names += ["logprobs"] * bool(choice.get("logprobs"))
            names += [f"finish {reason}" for reason in (choice.get("finish_reason"),) if reason]
    return {index: once([n for n in names if n != "logprobs"]) + ["logprobs"] * ("logprobs" in names)
            for index, names in found.items()}


def chunk_pieces(events: list[Told]) -> Iterator[Delta]:
    for event in events:
        for choice in event.get("choices", ()):
            delta, calls = choice["delta"], list[Any]()
            for call in delta.get("tool_calls") or ():
                function = call["function"]
                if call.get("id"):
                    calls.append(CallStart(call.get("index", 0), call["id"], function["name"]))
                if function.get("arguments"):
                    calls.append(CallArguments(call.get("index", 0), function["arguments"]))
            logprobs = (TokenLogprob(5, -0.5),) if choice.get("logprobs") else ()
            yield Delta(index=choice["index"], text=delta.get("content") or "", calls=tuple(calls), logprobs=logprobs,
                        reasoning=delta.get("reasoning_content") or "", finish=choice.get("finish_reason"))


async def gone(pieces: Iterator[Any]) -> AsyncGenerator[Any, None]:
    for piece in pieces:
        yield piece


async def said(events: AsyncGenerator[bytes, None]) -> list[Told]:
    return told(b"".join([event async for event in events]).decode())


@pytest.mark.parametrize("events", of("chat.completion.chunk"))
def test_chat_completions(events: list[Told], host: Host) -> None:
    if not events:
        pytest.skip("no recordings are here")
    want = chunk_shape(events)
    body = openai_chat.ChatBody(
        messages=[], logprobs=any("logprobs" in names for names in want.values()),
        stream_options=openai_chat.StreamOptions(include_usage="usage" in want.get(-1, ())))
    made = openai_chat.stream(gone(chunk_pieces(events)), body, {}, host.llm.tokenizer)
    got = chunk_shape(asyncio.run(said(made)))
    assert {i: names for i, names in got.items() if i >= 0} == {i: names for i, names in want.items() if i >= 0}
    assert got[-1] == [name for name in want.get(-1, []) if name != "done"] + ["done"]


@pytest.mark.parametrize("events", of("text_completion"))
def test_completions(events: list[Told], host: Host) -> None:
    if not events:
        pytest.skip("no recordings are here")
    pieces = (openai_completions.Piece(index=c["index"], failure=None, event=Event(
        request_id=0, text=c["text"], finish_reason=c["finish_reason"])) for e in events for c in e.get("choices", ()))
    want = chunk_shape(events)
    body = openai_completions.CompletionBody(
        prompt="x", stream_options=openai_chat.StreamOptions(include_usage="usage" in want.get(-1, ())))
    got = chunk_shape(asyncio.run(said(openai_completions.stream(gone(pieces), body, {}, (), host.llm.tokenizer))))
    assert got[0] == want[0] and got[-1] == [name for name in want.get(-1, []) if name != "done"] + ["done"]


@pytest.mark.parametrize("events", of("response"))
def test_responses(events: list[Told], host: Host) -> None:
    if not events:
        pytest.skip("no recordings are here")
    stream = Responses("resp_1", "demo", Body(model="demo", input="x"), 0.0, host.llm.tokenizer)
    pieces = [Delta(text=e["delta"]) for e in events if e["type"] == "response.output_text.delta"]
    again = [*stream.start(), *(e for piece in (*pieces, Delta(finish="stop")) for e in stream.push(piece))]
    assert once([e["type"] for e in again]) == once([e["type"] for e in events])
    for ours, theirs in zip(again, events, strict=False):
        if ours["type"] == theirs["type"]:
            assert set(ours) >= set(theirs) - {"obfuscation"}, ours["type"]
    assert set(again[-1]["response"]) >= {"output", "usage", "status", "truncation", "top_logprobs"}
