"""Requests drawn from the server's own document: answers as it says, never a failure of the server, never a hang."""
from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from mutations import LIMITS
from schemathesis.checks import load_all_checks
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served import idle, serving

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.serve.host import Host
from blackwell_infer.serve.openapi import ENDPOINTS, Endpoint, document

SLOWEST = 20.0
"""Seconds that no request may take"""
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


def brief(made: dict[str, Any]) -> dict[str, Any]:
    """A document that asks for answers of a token or two only, so that there is time for many, of the model served."""
    for schema in made["components"]["schemas"].values():
        if "model" in schema.get("properties", ()):
            schema["properties"]["model"] = {"const": "demo"}
        limits = LIMITS & set(schema.get("properties", ()))
        for name in limits:
            schema["properties"][name] = {"type": "integer", "minimum": 1, "maximum": 2}
        if limits:
            schema["required"] = sorted({*schema.get("required", ()), *limits})
    return made


def explore(llm: LLM, endpoint: Endpoint, count: int, mode: GenerationMode, draws: int) -> Counter[int]:
    """Send `count` requests to one operation that follow the document, or break it somewhere: the statuses."""
    found = Counter[int]()
    load_all_checks()
    host = Host(llm, "demo", ServeConfig(max_body=100_000, request_timeout=2.0))
    operation = schemathesis.openapi.from_dict(brief(document(host)))[endpoint.path][endpoint.method.upper()]
    with serving(host) as address:
        @seed(draws)
        @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            got = case.call(base_url=address, timeout=SLOWEST)
            assert got.status_code < 500 or got.status_code == 504, (case.as_curl_command(), got.text)
            case.validate_response(got, checks=CHECKS)
            found[got.status_code] += 1

        ask()
    assert idle(llm, 5)
    return found


NAMES = [f"{endpoint.method} {endpoint.path}" for endpoint in ENDPOINTS]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=NAMES)
def test_requests_that_follow_the_document(llm: LLM, endpoint: Endpoint) -> None:
    found = explore(llm, endpoint, 15 if endpoint.body is not None else 3, GenerationMode.POSITIVE, 5)
    assert endpoint.body is None or found[200], found


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.body is not None],
                         ids=[e.path for e in ENDPOINTS if e.body is not None])
def test_requests_that_break_the_document(llm: LLM, endpoint: Endpoint) -> None:
    found = explore(llm, endpoint, 15, GenerationMode.NEGATIVE, 6)
    assert found[400], found


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.body is not None],
                         ids=[e.path for e in ENDPOINTS if e.body is not None])
def test_many_requests(llm: LLM, endpoint: Endpoint, mode: GenerationMode) -> None:
    explore(llm, endpoint, 400, mode, 7)
