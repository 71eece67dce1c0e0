"""Arguments that a dialect writes as plain text, and what their schemas say of them."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from blackwell_infer.errors import RequestError
from blackwell_infer.types import Tool

Style = Literal["text", "text or null", "json"]

CLOSED = frozenset(("type", "properties", "required", "additionalProperties", "title", "description", "default",
                    "examples", "$schema", "$id", "$comment", "$defs", "definitions", "strict"))
"""Keywords of an object of arguments that a dialect which writes them one by one can keep."""

RAW = frozenset(("type", "enum", "const", "minLength", "maxLength", "title", "description", "default", "examples",
                 "$comment", "deprecated"))
"""Keywords of a text that needs no quotes; with any other it is written as JSON."""


def find(tools: Sequence[Tool], name: str) -> Tool | None:
    """The tool of this name."""
    return next((tool for tool in tools if tool.name == name), None)


def closed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a call's arguments: an object, without properties that are not declared unless it allows them."""
    return {"properties": {}, "additionalProperties": False, **parameters, "type": "object"}


def local(schema: Any, root: Mapping[str, Any], depth: int = 16) -> Any:
    """The schema that a local $ref stands for, or the schema itself."""
    while depth and isinstance(schema, Mapping) and isinstance(ref := schema.get("$ref"), str) and ref.startswith("#/"):
        found: Any = root
        for part in ref[2:].split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is None:
            raise RequestError(f"the schema refers to {ref}, which it does not have")
        schema, depth = found, depth - 1
    return schema


def plain(schema: Any, root: Mapping[str, Any]) -> tuple[Style, Mapping[str, Any]]:
    """How an argument of this schema is written in a dialect of plain text, and the schema of the text."""
    schema = local(schema, root)
    if not isinstance(schema, Mapping):
        return "json", {}
    either = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(either, Sequence) and len(either) == 2 and {"type": "null"} in either:
        style, text = plain(either[either[0] == {"type": "null"}], root)
        others = schema.keys() - {"anyOf", "oneOf", "title", "description", "default", "examples"}
        return ("text or null", text) if style == "text" and not others else ("json", {})
    kind, values = schema.get("type"), schema.get("enum", [schema["const"]] if "const" in schema else None)
    texts = isinstance(values, Sequence) and bool(values) and all(isinstance(v, str) for v in values)
    if schema.keys() - RAW or (values is not None and not texts):
        return "json", {}
    if kind == "string" or (kind is None and texts):
        return "text", schema
    if isinstance(kind, Sequence) and sorted(kind) == ["null", "string"] and values is None:
        return "text or null", schema
    return "json", {}


def read(text: str, style: Style) -> str:
    """JSON of an argument that was written as plain text. What should be JSON and is none is taken as a text."""
    if style == "text" or (style == "text or null" and text != "null"):
        return json.dumps(text, ensure_ascii=False)
    bare = text.strip()
    named = {"True": "true", "False": "false", "None": "null"}.get(bare, bare)
    try:
        return json.dumps(json.loads(named, parse_constant=refuse), ensure_ascii=False)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)


def refuse(constant: str) -> Any:
    """NaN and the infinities are no JSON."""
    raise ValueError(constant)
