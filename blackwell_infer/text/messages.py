"""Messages that a caller hands in as JSON values, checked and turned into `Message`."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blackwell_infer.errors import RequestError
from blackwell_infer.types import Message

FIELDS = ("role", "content", "reasoning_content", "name")


def read_messages(value: Any) -> tuple[Message, ...]:
    """Messages from a list of `Message` or of mappings with role and content.

    Content is a string or a list of {"type": "text", "text": ...} parts, which are joined. RequestError names the
    message and what is wrong with it.
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
    for key in ("reasoning_content", "name"):
        if not isinstance(value.get(key), str | None):
            raise RequestError(f"{place}.{key} must be a text, not {type(value[key]).__name__}")
    return Message(
        role=role, content=_content(value.get("content"), f"{place}.content"),
        reasoning_content=value.get("reasoning_content"), name=value.get("name"),
    )


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
