"""Which JSON schemas can be enforced: every keyword is either enforced, a mere remark, or refused by name and place."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blackwell_infer.errors import RequestError

DEPTH = 64
"""Most schemas within schemas"""
NODES = 20_000
"""Most values in a schema, enumerated ones included"""

REMARKS = frozenset((
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "discriminator",
    "contentEncoding", "contentMediaType", "contentSchema",
))
SCHEMAS = frozenset(("items", "additionalProperties", "additionalItems"))
"""Keywords whose value is a schema (`items` of older drafts: or a list of them)"""
LISTS = frozenset(("anyOf", "oneOf", "allOf", "prefixItems"))
MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions"))
VALUES = frozenset((
    "type", "enum", "const", "required", "minLength", "maxLength", "pattern", "format", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "minProperties", "maxProperties",
    "$ref",
))
REFUSED = frozenset((
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames",
    "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties", "$anchor",
    "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$vocabulary", "$id", "id", "x-guidance",
    "divisibleBy", "disallow", "extends",
))
"""Known keywords that cannot be enforced. A keyword that no draft knows says nothing, as the standard has it."""
COUNTS = frozenset(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"))
DRAFTS = ("draft-04/schema", "draft-06/schema", "draft-07/schema", "draft/2019-09/schema", "draft/2020-12/schema")
"""Of which `$schema` may speak"""
FORMATS = frozenset((
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
))


def check_schema(schema: Any, place: str = "$") -> None:
    """Pass a schema that can be enforced. RequestError names the keyword that cannot, and its path."""
    count = 0
    waiting: list[tuple[Any, str, int]] = [(schema, place, 0)]
    while waiting:
        node, where, depth = waiting.pop()
        count += size(node)
        if depth > DEPTH or count > NODES:
            raise RequestError(f"the schema is too large at {where}: at most {DEPTH} schemas within each other and "
                               f"{NODES} values; make it smaller")
        if isinstance(node, bool):
            continue
        if not isinstance(node, Mapping):
            raise RequestError(f"the schema at {where} must be an object, true or false, not {type(node).__name__}")
        check_keywords(node, where, schema, place)
        waiting += [(part, f"{where}{step}", depth + 1) for step, part in parts(node, where)]


def check_keywords(node: Mapping[str, Any], where: str, root: Any, place: str) -> None:
    """Refuse what this schema, without those inside of it, says that cannot be enforced."""
    for key, value in node.items():
        if key in REFUSED and not harmless(key, value, where == place):
            raise RequestError(f"the schema keyword {key!r} at {where} is not supported; leave it out, or say it with "
                               "anyOf, enum, const or required")
    if (ref := node.get("$ref")) is not None and not resolves(ref, root):
        raise RequestError(f"the schema keyword '$ref' at {where} is {ref!r}; only references into the schema itself, "
                           "such as '#/$defs/name', are supported")
    if (draft := node.get("$schema")) is not None and not str(draft).rstrip("#").endswith(DRAFTS):
        raise RequestError(f"the schema keyword '$schema' at {where} is {draft!r}, no draft known here; leave it out")
    if (name := node.get("format")) is not None and name not in FORMATS:
        raise RequestError(f"the schema keyword 'format' at {where} is {name!r}, which is not supported; known are "
                           f"{', '.join(sorted(FORMATS))}")


def harmless(key: str, value: Any, top: bool) -> bool:
    """Whether a refused keyword says nothing here: `uniqueItems: false`, or an address of the whole schema."""
    return (key == "uniqueItems" and value is False) or (key in ("$id", "id") and top)


def plain_schema(schema: Any) -> Any:
    """A checked schema without what says nothing but the library does not read: addresses, `uniqueItems: false`, whole
    numbers written as fractions, empty bounds."""
    if not isinstance(schema, Mapping):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in REFUSED or key in REMARKS:
            continue
        if key in MAPS:
            value = {name: plain_schema(part) for name, part in value.items()}
        elif key in LISTS or (key == "items" and isinstance(value, list)):
            value = [plain_schema(part) for part in value]
        elif key in SCHEMAS:
            value = plain_schema(value)
        elif key in COUNTS and isinstance(value, float) and value.is_integer():
            value = int(value)
        result[key] = value
    return result


def places(schema: Any, keyword: str) -> Iterator[str]:
    """Where a keyword stands in a checked schema."""
    waiting = [(schema, "$")]
    while waiting:
        node, where = waiting.pop()
        if isinstance(node, Mapping):
            if keyword in node:
                yield where
            waiting += [(part, where + step) for step, part in parts(node, where)]


def resolves(ref: Any, root: Any) -> bool:
    """Whether a reference leads to a schema inside `root`."""
    if ref == "#":
        return True
    if not isinstance(ref, str) or not ref.startswith("#/"):
        return False
    found: Any = root
    for part in ref[2:].split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(part)] if part.isdecimal() and int(part) < len(found) else None
        else:
            found = found.get(part) if isinstance(found, Mapping) else None
    return isinstance(found, Mapping | bool)


def parts(node: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """The schemas inside of a schema with the step to each."""
    for key in node:
        value = node[key]
        if key in MAPS:
            if not isinstance(value, Mapping):
                raise RequestError(f"the schema keyword {key!r} at {where} must be an object")
            yield from ((f".{key}.{name}", part) for name, part in value.items())
        elif key in LISTS or (key == "items" and isinstance(value, list)):
            if not isinstance(value, list):
                raise RequestError(f"the schema keyword {key!r} at {where} must be a list of schemas")
            yield from ((f".{key}[{i}]", part) for i, part in enumerate(value))
        elif key in SCHEMAS:
            yield f".{key}", value


def size(node: Any) -> int:
    """About how many values a schema holds by itself."""
    if not isinstance(node, Mapping):
        return 1
    return 1 + sum(len(v) if isinstance(v, Sequence) and not isinstance(v, str) else 1 for v in node.values())
