"""The published descriptions of the APIs and streams recorded of them, where they are at hand."""
from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

API = Path(__file__).resolve().parents[1].parent / "shared/data/api"


@cache
def document(name: str) -> dict[str, Any]:
    if not API.exists():
        pytest.skip("needs the documents of ../shared/data/api")
    if name == "anthropic":
        return json.loads((API / "anthropic/openapi.tryAGI.yaml").read_text())
    yaml = pytest.importorskip("yaml")
    return yaml.load((API / "openai/openapi.yaml").read_text(), Loader=yaml.CSafeLoader)


def validate(value: Any, document_name: str, schema: str) -> None:
    """Check a value against a named schema of a document."""
    schemas = document(document_name)["components"]
    jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": schemas}).validate(value)


def names(stream: str) -> list[str]:
    """The names of a stream's events in order, repeated ones once, without pings."""
    found = [line.removeprefix("event:").strip() for line in stream.splitlines() if line.strip().startswith("event:")]
    kept = [name for name in found if name != "ping"]
    return [name for i, name in enumerate(kept) if i == 0 or name != kept[i - 1]]
