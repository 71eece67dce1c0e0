"""Spoiled bodies for every endpoint that takes one: never a failure of the server, never a hang, nothing left over."""
from __future__ import annotations

import random
import time
from collections import Counter

import httpx
import pytest
from mutations import VALID, spoiled
from served import idle, serving
from starlette.routing import Route

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.serve.app import make_app
from blackwell_infer.serve.host import Host

SLOWEST = 20.0
"""Seconds that no request may take; the server breaks answers off after `TIMEOUT`."""
TIMEOUT = 1.0


def fuzz(llm: LLM, seed: int, count: int) -> Counter[int]:
    """Send so many bodies; the statuses that came back."""
    draw, found = random.Random(seed), Counter[int]()
    # Small answers only: what a spoiled limit leaves open ends at the timeout.
    with (serving(Host(llm, "demo", ServeConfig(max_body=100_000, request_timeout=TIMEOUT))) as address,
          httpx.Client(base_url=address, timeout=SLOWEST) as client):
        for i in range(count):
            path = list(VALID)[i % len(VALID)]
            body = spoiled(path, draw)
            try:
                got = client.post(path, content=body)
            except httpx.TransportError as error:
                raise AssertionError(f"{seed}, {i}: {path} {body[:3000]!r}: {error!r}") from None
            assert got.status_code < 500 or got.status_code == 504, (seed, i, path, body[:3000], got.text)
            assert "an unexpected error" not in got.text, (seed, i, path, body[:3000], got.text)
            found[got.status_code] += 1
        assert client.get("/health").status_code == 200
    assert idle(llm, 5)
    return found


def test_every_endpoint_that_takes_a_body_is_here(host: Host) -> None:
    taking = {route.path for route in make_app(host).routes if isinstance(route, Route) and "POST" in route.methods}
    assert taking == set(VALID)


@pytest.mark.parametrize("path", VALID)
def test_unspoiled_bodies_are_answered(address: str, path: str) -> None:
    for body in VALID[path]:
        got = httpx.post(address + path, json=body, timeout=60)
        assert got.status_code == 200, (body, got.text)


def test_hundreds_of_bodies(llm: LLM) -> None:
    found = fuzz(llm, 11, 320)
    assert found[400] > 80 and found[200] > 16, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_thousands_of_bodies(llm: LLM, seed: int) -> None:
    began = time.monotonic()
    found = fuzz(llm, 1000 + seed, 1000)
    assert found[400] > 250 and found[200] > 50, (found, time.monotonic() - began)
