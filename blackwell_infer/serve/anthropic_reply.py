"""Anthropic's Messages API: from the pieces of an answer to a message, or to the events of its stream."""
from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from blackwell_infer.serve.conversation import Delta, broken
from blackwell_infer.serve.errors import anthropic_body
from blackwell_infer.text.messages import arguments_of
from blackwell_infer.text.tools import CallStart
from blackwell_infer.types import Usage

Event = dict[str, Any]
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
DIRECT = {"type": "direct"}
FIELDS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class Stream:
    """Turns pieces of one answer into events: message_start, blocks one after the other, message_delta, message_stop.

    A block is open at a time. Empty pieces make no block; an answer without any has none. The start of the first block
    is followed by a ping, as the API does it.
    """

    def __init__(self, id: str, model: str, prompt_tokens: int, request_id: str | None = None) -> None:
        self._request_id = request_id
        self._message: Event = {
            "id": id, "type": "message", "role": "assistant", "model": model, "content": [], "stop_reason": None,
            "stop_sequence": None, "stop_details": None, "container": None,
            "usage": usage_of(Usage(prompt_tokens=prompt_tokens)),
        }
        self._open: str | None = None
        self._index = -1
        self._thought = ""

    def start(self) -> Iterator[Event]:
        yield {"type": "message_start", "message": self._message}

    def push(self, delta: Delta) -> Iterator[Event]:
        """Events of one piece; the last piece, which has `finish`, ends the message or fails it."""
        if delta.reasoning:
            yield from self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            self._thought += delta.reasoning
            yield self._delta({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.text:
            yield from self._begin("text", {"type": "text", "text": "", "citations": None})
            yield self._delta({"type": "text_delta", "text": delta.text})
        for call in delta.calls:
            if isinstance(call, CallStart):
                block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}, "caller": DIRECT}
                yield from self._begin(f"call {call.index}", block)
                yield self._delta({"type": "input_json_delta", "partial_json": ""})
            elif call.delta:
                yield self._delta({"type": "input_json_delta", "partial_json": call.delta})
        if delta.finish is not None or delta.failure is not None:
            yield from self._end(delta)

    def _begin(self, kind: str, block: Event) -> Iterator[Event]:
        if self._open != kind:
            yield from self._close()
            self._open, self._index = kind, self._index + 1
            yield {"type": "content_block_start", "index": self._index, "content_block": block}
            if not self._index:
                yield {"type": "ping"}

    def _close(self) -> Iterator[Event]:
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": signature(self._thought)})
            self._thought = ""
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._index}

    def _delta(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _end(self, delta: Delta) -> Iterator[Event]:
        yield from self._close()
        failure = broken(delta)
        if failure is not None:
            yield anthropic_body(failure, self._request_id)
            return
        if self._index < 0:
            yield {"type": "ping"}
        yield {
            "type": "message_delta", "delta": ending(delta), "usage": usage_of(delta.usage or Usage()),
        }
        yield {"type": "message_stop"}


def message(events: Iterable[Event]) -> Event:
    """The message that a whole stream adds up to; its last event if that is an error.

    A call that was cut off before its arguments were complete has an empty input.
    """
    found: Event = {}
    texts: list[str] = []
    for event in events:
        match event["type"]:
            case "message_start":
                found = {**event["message"], "content": []}
            case "content_block_start":
                found["content"].append(dict(event["content_block"]))
                texts = []
            case "content_block_delta":
                delta = event["delta"]
                if delta["type"] == "signature_delta":
                    found["content"][-1]["signature"] = delta["signature"]
                else:
                    texts.append(delta[FIELDS[delta["type"]]])
            case "content_block_stop":
                _fill(found["content"][-1], "".join(texts))
            case "message_delta":
                found |= {**event["delta"], "usage": event["usage"]}
            case "error":
                return event
    return found


def _fill(block: Event, text: str) -> None:
    if block["type"] == "tool_use":
        block["input"] = arguments_of(text) or {}
    else:
        block[block["type"]] = text


def ending(delta: Delta) -> Event:
    """Why the answer ended, and at which stop sequence if at one."""
    reason = "stop_sequence" if delta.stop is not None else STOP_REASONS[str(delta.finish)]
    return {"stop_reason": reason, "stop_sequence": delta.stop, "stop_details": None, "container": None}


def usage_of(usage: Usage) -> Event:
    """Counts as this API has them: `input_tokens` are those that no cache held."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens, "output_tokens": usage.completion_tokens,
        "cache_creation": None, "inference_geo": None, "server_tool_use": None, "service_tier": "standard",
    }


def signature(thought: str) -> str:
    """What stands for the signature of a block of thinking. It proves nothing and is not checked on the way back."""
    return base64.b64encode(hashlib.sha256(thought.encode()).digest()).decode()
