"""Valid requests of every endpoint, and ways to spoil their bodies."""
from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from api_documents import mutated

QUESTION = [{"role": "user", "content": "What is 12 times 12?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS}
SAID = [{"role": "system", "content": "Be brief."}, *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}]},
        {"role": "tool", "tool_call_id": "a", "content": '{"temperature": 21}'}]
BLOCKS = [{"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
          {"role": "assistant", "content": [
              {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "Paris"}}]},
          {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "21 degrees"}]}]
ITEMS = [{"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
         {"type": "function_call", "call_id": "a", "name": "get_weather", "arguments": '{"city": "Paris"}'},
         {"type": "function_call_output", "call_id": "a", "output": "21 degrees"}]

VALID: Mapping[str, tuple[dict[str, Any], ...]] = {
    "/v1/chat/completions": (
        {"model": "demo", "messages": SAID, "max_tokens": 1, "tools": [{"type": "function", "function": FUNCTION}],
         "tool_choice": "auto", "stop": ["a"], "logit_bias": {"5": 1}, "temperature": 0.5, "n": 1, "seed": 3},
        {"model": "demo", "messages": QUESTION, "max_completion_tokens": 1, "stream": True, "logprobs": True,
         "stream_options": {"include_usage": True}, "top_logprobs": 2, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
        {"model": "demo", "messages": QUESTION, "max_tokens": 1, "reasoning_effort": "low", "response_format": {
            "type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": PARAMETERS}}},
        {"model": "demo", "messages": QUESTION, "max_tokens": 1, "thinking_budget": 3, "response_format": {
            "type": "json_object"}, "tools": [{"type": "function", "function": FUNCTION}]}),
    "/v1/completions": (
        {"model": "demo", "prompt": "One, two,", "max_tokens": 1, "echo": True, "stop": "x", "presence_penalty": 0.5},
        {"model": "demo", "prompt": [[1, 2, 3], [4, 5]], "max_tokens": 1, "logprobs": 2, "stream": True},
        {"model": "demo", "prompt": "One, two,", "max_tokens": 1, "echo": True, "logprobs": 2, "best_of": 2}),
    "/v1/responses": (
        {"model": "demo", "input": ITEMS, "max_output_tokens": 1, "instructions": "Be brief.", "tools": [
            {"type": "function", "strict": True, **FUNCTION}], "tool_choice": "auto"},
        {"model": "demo", "input": "Hello", "max_output_tokens": 1, "stream": True, "reasoning": {"effort": "low"},
         "text": {"format": {"type": "json_schema", "name": "city", "schema": PARAMETERS}}},
        {"model": "demo", "input": ITEMS, "max_output_tokens": 1, "truncation": "auto", "top_logprobs": 1,
         "include": ["message.output_text.logprobs"], "thinking_budget": 2}),
    "/v1/messages": (
        {"model": "demo", "max_tokens": 1, "messages": BLOCKS, "system": [{"type": "text", "text": "Be brief."}],
         "tools": [{"name": "get_weather", "description": "Weather", "input_schema": PARAMETERS}],
         "tool_choice": {"type": "auto"}, "stop_sequences": ["x"], "temperature": 0.5},
        {"model": "demo", "max_tokens": 1, "messages": QUESTION, "stream": True, "metadata": {"user_id": "u"}},
        {"model": "demo", "max_tokens": 3, "messages": QUESTION, "thinking": {"type": "enabled", "budget_tokens": 2},
         "output_format": {"type": "json_schema", "schema": PARAMETERS}}),
    "/v1/messages/count_tokens": ({"model": "demo", "messages": BLOCKS, "system": "Be brief."},),
    "/v1/embeddings": (
        {"model": "demo", "input": ["One", "two"], "encoding_format": "base64", "dimensions": 4},
        {"model": "demo", "input": [[1, 2], [3]], "pooling": "mean"}),
    "/tokenize": ({"text": "Hello", "model": "demo", "add_special_tokens": True},),
    "/detokenize": ({"tokens": [1, 2, 3], "model": "demo"},),
}
"""Requests that get an answer, by path; each answer is a few tokens long at most"""

LIMITS = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens"})
PATCHES = (b"", b"null", b"-1", b"1e400", b"[]", b"{}", b'"', b"\xff", b"99999999999999999999", b"\\ud800", b"NaN",
           b"Infinity", b"-0", b"1e-999", b"\x00", b"\\u0000", b"\xed\xa0\x80", b",", b":", b"true", b"0.5", b"\\")
STRANGE: tuple[Any, ...] = (None, True, 0, -1, 1e308, 5e-324, 2**63, -(2**64), 10**400, float("nan"), float("inf"), "",
                            "\ud800", "\x00", "x" * 5000, "\U0010ffff", [], {}, [[]], {"": None}, [None], [2**63])


def spoiled(path: str, draw: random.Random) -> bytes:
    """A body for this path with something wrong in it, most likely."""
    value = draw.choice(VALID[path])
    kind = draw.choice(("bytes", "flip", "cut", "strange", "types", "types", "double", "deep", "foreign", "hoard"))
    if kind == "types":
        for _ in range(draw.randint(1, 3)):
            value = mutated(value, draw)
    elif kind == "strange":
        value = replaced(value, draw, draw.choice(STRANGE))
    elif kind == "deep":
        value = replaced(value, draw, nested(draw))
    elif kind == "foreign":
        value = value | draw.choice(VALID[draw.choice(list(VALID))])
    elif kind == "hoard":
        value = replaced(value, draw, draw.choice(([1] * 3000, {str(i): i for i in range(2000)}, [QUESTION[0]] * 300)))
    body = bytearray(json.dumps(value).encode())
    if kind == "bytes":
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(body))
            body[at : at + draw.choice((0, 1, 5))] = draw.choice(PATCHES)
    elif kind == "flip":
        for _ in range(draw.randint(1, 8)):
            body[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del body[draw.randrange(len(body)) :]
    elif kind == "double" and value:
        key = draw.choice(list(value))
        body[-1:] = b", " + json.dumps({key: draw.choice(STRANGE)}).encode()[1:]
    return bytes(body)


def replaced(value: Any, draw: random.Random, by: Any) -> Any:
    """The value with `by` somewhere in it, in place of something."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        return value | {key: replaced(value[key], draw, by)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], replaced(value[at], draw, by), *value[at + 1 :]]
    return by


def nested(draw: random.Random) -> Any:
    """Lists or objects in each other, as deep as a body may be or deeper."""
    value: Any = 1
    for _ in range(draw.choice((10, 50, 63, 64, 65, 500))):
        value = [value] if draw.random() < 0.5 else {draw.choice(("type", "properties", "items", "a", "anyOf")): value}
    return value
