"""Schemas of arguments as grammars of Gemma 4's notation."""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from blackwell_infer.errors import RequestError
from blackwell_infer.text.grammar_schema import REMARKS
from blackwell_infer.text.grammar_terms import literal, without
from blackwell_infer.text.tools.arguments import closed, local
from blackwell_infer.text.tools.rules import json_rule
from blackwell_infer.types import Tool

QUOTE = '<|"|>'
KEYWORDS = {
    "object": ("properties", "required", "additionalProperties"), "array": ("items", "minItems", "maxItems"),
    "string": ("minLength", "maxLength"), "boolean": (), "null": (),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
"""What can be enforced of each type"""
ANYWHERE = REMARKS | {"type", "$defs", "definitions", "$schema", "$id"}


def call_rules(name: str, tool: Tool, before: str, after: str) -> list[str]:
    """The rules of a tool's call. A tool that is not strict takes any object where its schema cannot be enforced."""
    try:
        maker = Maker(name, closed(tool.parameters), f"tools.{tool.name}.parameters")
        body = maker.value(maker.root, maker.place)
    except RequestError:
        if tool.strict:
            raise
        maker = Maker(name, {"type": "object"}, "")
        body = maker.any_object()
    return [f"{name}: {literal(before)} {body} {literal(after)}", *maker.rules]


class Maker:
    """Makes the rules of one schema; their names begin with `name`."""

    def __init__(self, name: str, root: Mapping[str, Any], place: str) -> None:
        self.name, self.root, self.place = name, root, place
        self.rules: list[str] = []
        self._known: dict[str, str] = {}
        self._count = 0

    def rule(self, body: str, prefix: str = "") -> str:
        """The name of a new rule."""
        self._count += 1
        name = f"{prefix or self.name}_{self._count}"
        self.rules.append(f"{name}: {body}")
        return name

    def value(self, schema: Any, where: str) -> str:
        """The name of the rule of a schema."""
        if isinstance(schema, Mapping) and "$ref" in schema:
            ref = str(schema["$ref"])
            if ref not in self._known:
                self._count += 1
                self._known[ref] = name = f"{self.name}_{self._count}"
                self.rules.append(f"{name}: {self.value(local({'$ref': ref}, self.root), where)}")
            return self._known[ref]
        if schema is True or schema == {}:
            return self.any_value()
        if not isinstance(schema, Mapping):
            raise RequestError(f"the schema at {where} allows no value or is none")
        return self.rule(self._body(schema, where))

    def _body(self, schema: Mapping[str, Any], where: str) -> str:
        either = next((key for key in ("anyOf", "enum", "const") if key in schema), None)
        kinds = schema.get("type", [] if either else list(KEYWORDS))
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        allowed = {key for kind in kinds for key in KEYWORDS.get(kind, ())} if either is None else {either}
        for key in schema:
            if key not in ANYWHERE and key not in allowed:
                raise RequestError(f"the schema keyword {key!r} at {where} is not supported for this model's tools; "
                                   "leave it out, or make the tool not strict")
        if either == "anyOf":
            return " | ".join(self.value(part, f"{where}.anyOf[{i}]") for i, part in enumerate(schema["anyOf"]))
        if either is not None:
            values = schema["enum"] if either == "enum" else [schema["const"]]
            fitting = [v for v in values if not kinds or any(is_a(v, kind) for kind in kinds)]
            if not fitting:
                raise RequestError(f"the schema keyword {either!r} at {where} allows no value")
            return " | ".join(literal(written(v)) for v in fitting)
        return " | ".join(self._kind(kind, schema, where) for kind in kinds)

    def _kind(self, kind: str, schema: Mapping[str, Any], where: str) -> str:
        match kind:
            case "object":
                return self._object(schema, where)
            case "array":
                item = self.value(schema.get("items", {}), f"{where}.items")
                least, most = schema.get("minItems", 0), schema.get("maxItems")
                if most == 0:
                    return '"[" "]"'
                more = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
                return f'"[" ({item} {more})' + ("" if least else "?") + ' "]"'
            case "string":
                least, most = schema.get("minLength", 0), schema.get("maxLength", "")
                sized = f" & /(?s:.{{{least},{most}}})/" if least or most != "" else ""
                text = f"{literal(QUOTE)} ({without(QUOTE)}{sized}) {literal(QUOTE)}"
                return self.rule(text, self.name.upper())
            case "boolean":
                return '"true" | "false"'
            case "null":
                return '"null"'
            case "integer" | "number":
                return self.rule(json_rule({"type": kind, **{k: schema[k] for k in KEYWORDS[kind] if k in schema}}))
        raise RequestError(f"the schema keyword 'type' at {where} is {kind!r}; known are {', '.join(KEYWORDS)}")

    def _object(self, schema: Mapping[str, Any], where: str) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", ())
        extra = schema.get("additionalProperties", True)
        if not properties and not required and extra is not False:
            return self.any_object(None if extra is True else self.value(extra, f"{where}.additionalProperties"))
        entries = {**properties, **{key: {} if extra is True else extra for key in required if key not in properties}}
        first, more = '""', '""'
        for key, part in reversed(entries.items()):
            pair = f'{literal(key + ":")} {self.value(part, f"{where}.properties.{key}")}'
            here = f"{pair} {more}"
            first = self.rule(here if key in required else f"{here} | {first}")
            more = self.rule(f'"," {here}' if key in required else f'("," {pair})? {more}')
        return f'"{{" {first} "}}"'

    def any_object(self, value: str | None = None) -> str:
        """An object of any keys."""
        pair = self.rule(f'/[A-Za-z_][A-Za-z0-9_]{{0,63}}/ ":" {value or self.any_value()}')
        return f'"{{" ({pair} ("," {pair})*)? "}}"'

    def any_value(self) -> str:
        """The name of the rule of any value."""
        if "" not in self._known:
            self._known[""] = name = f"{self.name}_any"
            kinds = [self._kind(kind, {}, "") for kind in KEYWORDS]
            self.rules.append(f"{name}: {' | '.join(kinds)}")
        return self._known[""]


def is_a(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a schema's type."""
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and float(value).is_integer())
    return {str: "string", list: "array", dict: "object", type(None): "null"}[type(value)] == kind


def written(value: Any) -> str:
    """A JSON value in this notation. RequestError for a text that holds its mark of quotation."""
    if isinstance(value, str):
        if QUOTE in value:
            raise RequestError(f"{value!r} cannot be written for this model")
        return QUOTE + value + QUOTE
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{written(v)}" for key, v in value.items()) + "}"
    return json.dumps(value)
