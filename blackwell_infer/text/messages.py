"""Messages that a caller hands in as JSON values, checked and turned into `Message`."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from blackwell_infer.errors import RequestError
from blackwell_infer.types import Message, ToolCall

FIELDS = ("role", "content", "reasoning_content", "name", "tool_calls", "tool_call_id")


def read_messages(value: Any) -> tuple[Message, ...]:
    """Messages from a list of `Message` or of mappings with role and content.

    Content is a string or a list of {"type": "text", "text": ...} parts, which are joined; beside tool_calls it may be
    missing. Calls are {"id", "type": "function", "function": {"name", "arguments": JSON text or an object}}, and each
    has an id. RequestError names the message and what is wrong with it.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise RequestError(f"messages must be a list of objects with role and content, not {type(value).__name__}")
    if not value:
        raise RequestError("messages is empty; give at least one message")
    return tuple(item if isinstance(item, Message) else _message(item, i) for i, item in enumerate(value))


def _message(value: Any, index: int) -> Message:
    place = f"messages[{index}]"
    if not isinstance(value, Mapping):
        raise RequestError(f"{place} must be an object with role and content, not {type(value).__name__}")
    unknown = [str(key) for key, item in value.items() if key not in FIELDS and item is not None]
    if unknown:
        raise RequestError(f"{place} has {', '.join(unknown)}, which is not supported; known are {', '.join(FIELDS)}")
    role = value.get("role")
    if not isinstance(role, str) or not role:
        raise RequestError(f"{place}.role must be a text such as 'user', 'assistant' or 'system', not {role!r}")
    for key in ("reasoning_content", "name", "tool_call_id"):
        if not isinstance(value.get(key), str | None):
            raise RequestError(f"{place}.{key} must be a text, not {type(value[key]).__name__}")
    calls = _calls(value.get("tool_calls"), f"{place}.tool_calls")
    if calls and role != "assistant":
        raise RequestError(f"{place} is from {role!r}, but only an assistant makes tool_calls")
    content = value.get("content")
    return Message(
        role=role, content="" if content is None and calls else _content(content, f"{place}.content"),
        reasoning_content=value.get("reasoning_content"), name=value.get("name"), tool_calls=calls,
        tool_call_id=value.get("tool_call_id"),
    )


def _calls(value: Any, place: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RequestError(f"{place} must be a list of calls, not {type(value).__name__}")
    return tuple(item if isinstance(item, ToolCall) else _call(item, f"{place}[{i}]") for i, item in enumerate(value))


def _call(value: Any, place: str) -> ToolCall:
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or value.get("type", "function") != "function":
        raise RequestError(f'{place} must be {{"id": ..., "type": "function", "function": {{"name", "arguments"}}}}')
    id, name, arguments = value.get("id"), function.get("name"), function.get("arguments", "{}")
    if not isinstance(id, str) or not isinstance(name, str) or not name:
        raise RequestError(f"{place} needs an id and a function.name, both texts")
    if isinstance(arguments, Mapping):
        arguments = msgspec.json.encode(arguments).decode()
    if not isinstance(arguments, str) or arguments_of(arguments) is None:
        raise RequestError(f"{place}.function.arguments must be a JSON object, as text")
    return ToolCall(id=id, name=name, arguments=arguments)


def arguments_of(text: str) -> dict[str, Any] | None:
    """The arguments of a call as an object; None if they are none. No text at all stands for no arguments."""
    try:
        value = msgspec.json.decode(text) if text.strip() else {}
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _content(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise RequestError(f"{place} must be a text or a list of text parts, not {type(value).__name__}")
    texts = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RequestError(f'{place}[{i}] must be {{"type": "text", "text": ...}}, not {kind!r}')
        texts.append(part["text"])
    return "".join(texts)
