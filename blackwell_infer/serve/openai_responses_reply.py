"""OpenAI's Responses API: from the pieces of an answer to the events of its stream, the last of which has it all."""
from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec

from blackwell_infer.serve.conversation import Delta, broken
from blackwell_infer.serve.errors import message_of
from blackwell_infer.serve.openai_chat import logprob_items
from blackwell_infer.serve.openai_responses_request import Body
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.text.tools import CallStart
from blackwell_infer.types import TokenLogprob, Usage

Event = dict[str, Any]


class Stream:
    """Turns pieces of one answer into events; one item is open at a time, and `response` is what is known so far."""

    def __init__(self, id: str, model: str, body: Body, created: float, tokenizer: Tokenizer) -> None:
        self.response = skeleton(id, model, body, created)
        self._tokenizer = tokenizer
        self._wants_logprobs = body.wants_logprobs
        self._logprobs: list[Event] = []
        """of the open message"""
        self._held: tuple[TokenLogprob, ...] = ()
        """of tokens whose text has not come yet"""
        self._number = 0
        self._open = ""
        self._text = ""
        self._thought_tokens = 0

    def start(self) -> Iterator[Event]:
        yield self._event("response.created", response=dict(self.response))
        yield self._event("response.in_progress", response=dict(self.response))

    def push(self, delta: Delta) -> Iterator[Event]:
        """Events of one piece; the last piece, which has `finish`, completes the response or fails it."""
        self._thought_tokens += delta.thought_tokens
        if delta.reasoning:
            yield from self._begin("reasoning", {"type": "reasoning", "id": new_id("rs"), "summary": [], "content": []})
            yield self._piece("response.reasoning_text.delta", delta.reasoning, content_index=0)
        if delta.text:
            item = {"type": "message", "id": new_id("msg"), "role": "assistant", "content": []}
            held = () if self._open == "reasoning" else self._held
            yield from self._begin("message", item)
            logprobs = logprob_items((*held, *delta.logprobs), self._tokenizer) if self._wants_logprobs else []
            self._logprobs += logprobs
            yield self._piece("response.output_text.delta", delta.text, content_index=0, logprobs=logprobs)
        for call in delta.calls:
            if isinstance(call, CallStart):
                item = {"type": "function_call", "id": new_id("fc"), "call_id": call.id, "name": call.name,
                        "arguments": ""}
                yield from self._begin(f"call {call.index}", item)
            elif call.delta:
                yield self._piece("response.function_call_arguments.delta", call.delta)
        self._held = () if delta.text or delta.reasoning or delta.calls else self._held + delta.logprobs
        if delta.finish is not None or delta.failure is not None:
            yield from self._end(delta)

    def _begin(self, kind: str, item: Event) -> Iterator[Event]:
        if self._open == kind:
            return
        yield from self._close("completed")
        self._open, self._text, self._logprobs = kind, "", []
        self.response["output"] = [*self.response["output"], item]
        yield self._event("response.output_item.added", output_index=self._index, item=item | {"status": "in_progress"})
        part = self._part()
        if part is not None:
            yield self._here("response.content_part.added", content_index=0, part=part)

    def _close(self, status: str) -> Iterator[Event]:
        if not self._open:
            return
        item, part = self.response["output"][-1], self._part()
        if part is None:
            item = item | {"arguments": self._text}
            yield self._here("response.function_call_arguments.done", name=item["name"], arguments=self._text)
        else:
            item = item | {"content": [part]}
            logprobs: Event = {"logprobs": self._logprobs} if self._open == "message" else {}
            done = f"response.{part['type']}.done"
            yield self._here(done, content_index=0, text=self._text, **logprobs)
            yield self._here("response.content_part.done", content_index=0, part=part)
        item = item | {"status": status}
        self.response["output"] = [*self.response["output"][:-1], item]
        self._open = ""
        yield self._event("response.output_item.done", output_index=self._index, item=item)

    def _part(self) -> Event | None:
        """The content of the open item; a call has none."""
        if self._open == "reasoning":
            return {"type": "reasoning_text", "text": self._text}
        if self._open == "message":
            return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": self._logprobs}
        return None

    def _end(self, delta: Delta) -> Iterator[Event]:
        failure = broken(delta)
        status = "failed" if failure is not None else "incomplete" if delta.finish == "length" else "completed"
        yield from self._close("completed" if status == "completed" else "incomplete")
        self.response |= {"status": status, "usage": usage_of(delta.usage or Usage(), self._thought_tokens)}
        if status == "completed":
            self.response["completed_at"] = int(time.time())
        elif status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        elif failure is not None:
            self.response["error"] = {"code": "server_error", "message": message_of(failure)}
        yield self._event(f"response.{status}", response=dict(self.response))

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _piece(self, kind: str, delta: str, **fields: Any) -> Event:
        self._text += delta
        return self._here(kind, delta=delta, **fields)

    def _here(self, kind: str, **fields: Any) -> Event:
        """An event of the open item."""
        return self._event(kind, item_id=self.response["output"][-1]["id"], output_index=self._index, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event


def skeleton(id: str, model: str, body: Body, created: float) -> Event:
    """A response that has said nothing yet; it repeats what was asked for. `usage` comes with its end."""
    effort = body.reasoning.effort if body.reasoning else None
    format: Any = body.text.format if body.text else None
    tools = [
        {"type": "function", "name": tool.name, "description": tool.description, "parameters": tool.parameters,
         "strict": tool.strict is not False}
        for tool in body.tools or ()
    ]
    return {
        "id": id, "object": "response", "created_at": int(created), "status": "in_progress", "background": False,
        "completed_at": None, "error": None, "incomplete_details": None, "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens, "model": model, "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id, "reasoning": {"effort": effort, "summary": None},
        "store": body.store is not False, "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"} if format is None else msgspec.to_builtins(format)},
        "tool_choice": "auto" if body.tool_choice is None else msgspec.to_builtins(body.tool_choice), "tools": tools,
        "top_p": 1.0 if body.top_p is None else body.top_p, "truncation": body.truncation or "disabled",
        "top_logprobs": body.top_logprobs or 0, "metadata": body.metadata or {},
    }


def usage_of(usage: Usage, thought_tokens: int) -> Event:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens, "output_tokens_details": {"reasoning_tokens": thought_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
