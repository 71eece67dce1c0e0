"""The published descriptions of the APIs and streams recorded of them, where they are at hand."""
from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

API = Path(__file__).resolve().parents[1].parent / "shared/data/api"


@cache
def document(name: str) -> dict[str, Any]:
    if not API.exists():
        pytest.skip("needs the documents of ../shared/data/api")
    if name == "anthropic":
        return json.loads((API / "anthropic/openapi.tryAGI.yaml").read_text())
    return yaml.load((API / "openai/openapi.yaml").read_text(), Loader=yaml.CSafeLoader)


def validate(value: Any, document_name: str, schema: str) -> None:
    """Check a value against a named schema of a document."""
    schemas = document(document_name)["components"]
    jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": schemas}).validate(value)


def names(stream: str) -> list[str]:
    """The names of a stream's events in order, repeated ones once, without pings."""
    found = [line.partition("event:")[2].strip() for line in stream.splitlines() if line.strip().startswith("event:")]
    kept = [name for name in found if name != "ping"]
    return [name for i, name in enumerate(kept) if i == 0 or name != kept[i - 1]]


def mutated(value: Any, chance: random.Random) -> Any:
    """The value with something somewhere replaced or left out."""
    strange = [None, 0, -1, 1e300, 2**70, "", "x", [], {}, [None], True, {"type": "text"}, [{"type": "image"}]]
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        changed = {k: v for k, v in value.items() if k != key}
        return changed if chance.random() < 0.15 else changed | {key: mutated(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        return [*value[:at], mutated(value[at], chance), *value[at + 1:]]
    return chance.choice(strange)
