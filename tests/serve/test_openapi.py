"""The server's own document: valid, complete, and true of requests that are answered."""
from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest
from mutations import VALID
from starlette.routing import Route

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.serve import chat_page
from blackwell_infer.serve.app import make_app
from blackwell_infer.serve.host import Host
from blackwell_infer.serve.openapi import document


def test_every_route_is_in_it_and_nothing_else(host: Host) -> None:
    """But for the files of the page, which are for people."""
    routes = {(method.lower(), route.path.replace(":path", "")) for route in make_app(host).routes
              if isinstance(route, Route) and route.path not in chat_page.FILES for method in route.methods - {"HEAD"}}
    assert routes == {(method, path) for path, item in document(host)["paths"].items() for method in item}


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(v) for v in value.values()))
    return set().union(*(references(v) for v in value)) if isinstance(value, list) else set()


def test_schemas_are_schemas_and_references_lead_somewhere(address: str) -> None:
    found = httpx.get(address + "/openapi.json").json()
    assert found["openapi"].startswith("3.1.")
    for schema in found["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert references(found) == {f"#/components/schemas/{name}" for name in found["components"]["schemas"]
                                 if f"#/components/schemas/{name}" in references(found)}
    ids = [operation["operationId"] for item in found["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("path", VALID)
def test_valid_bodies_are_valid_by_it(host: Host, path: str) -> None:
    made = document(host)
    content = made["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    checker = jsonschema.Draft202012Validator({**content, "components": made["components"]})
    for body in VALID[path]:
        checker.validate(body)
    assert list(checker.iter_errors({"model": 5}))


def test_keys_are_asked_for_where_there_are_any(llm: LLM) -> None:
    assert "security" not in document(Host(llm, "demo", ServeConfig()))
    locked = document(Host(llm, "demo", ServeConfig(api_key=("secret",))))
    assert locked["security"] and locked["paths"]["/health"]["get"]["security"] == []
