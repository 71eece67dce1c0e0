"""Request ids, the access log, and pages of other origins."""
from __future__ import annotations

import json
import logging

import httpx
import pytest
from served import serving
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.serve.app import make_app
from blackwell_infer.serve.host import Host

ORIGIN = "https://page.example"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [json.loads(r.getMessage()) for r in caplog.records if r.getMessage().startswith("{")]


def test_a_line_for_each_request_without_its_text(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "blackwell_infer")
    with serving(Host(llm, "demo", ServeConfig(api_key=("hidden-key",)))) as address:
        headers = {"authorization": "Bearer hidden-key", "x-request-id": "mine-1"}
        body = {"messages": [{"role": "user", "content": "private words"}], "max_tokens": 1}
        got = httpx.post(address + "/v1/chat/completions?q=private", json=body, headers=headers, timeout=60)
        assert got.headers["x-request-id"] == "mine-1"
        stream = httpx.post(address + "/v1/chat/completions", json=body | {"stream": True}, headers=headers, timeout=60)
        assert stream.headers["x-request-id"] == "mine-1"
        denied = httpx.get(address + "/v1/models", headers={"x-request-id": "a b" * 100})
        assert denied.status_code == 401 and len(denied.headers["x-request-id"]) == 32
    found = lines(caplog)
    assert [(e["method"], e["path"], e["status"]) for e in found] == [
        ("POST", "/v1/chat/completions", 200), ("POST", "/v1/chat/completions", 200), ("GET", "/v1/models", 401)]
    assert [e["request_id"] for e in found] == ["mine-1", "mine-1", denied.headers["x-request-id"]]
    assert all(isinstance(e["milliseconds"], float) and e["milliseconds"] > 0 for e in found)
    assert "private" not in caplog.text and "hidden-key" not in caplog.text


def test_what_nobody_foresaw_has_an_id_and_a_line(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: Request) -> Response:
        raise ValueError("private words")

    async def pieces():  # type: ignore[no-untyped-def]
        yield b"begun"
        raise ValueError("later")

    async def late(request: Request) -> Response:
        return StreamingResponse(pieces())

    caplog.set_level(logging.INFO, "blackwell_infer")
    client = TestClient(make_app(host, [Route("/broken", broken), Route("/late", late)]))
    got = client.get("/broken")
    assert got.status_code == 500 and "private" not in got.text
    assert lines(caplog)[0]["request_id"] == got.headers["x-request-id"]
    assert lines(caplog)[0]["status"] == 500
    with pytest.raises(ValueError, match="later"):
        client.get("/late")
    assert lines(caplog)[1]["path"] == "/late"


@pytest.mark.parametrize(("origins", "site", "status"), [
    ((), "cross-site", 403), ((), "same-site", 403), ((), "same-origin", 200), ((), None, 200),
    ((ORIGIN,), "cross-site", 200), (("https://other.example",), "cross-site", 403), (("*",), "cross-site", 200)])
def test_pages_of_other_origins_can_start_nothing(llm: LLM, origins: tuple[str, ...], site: str | None,
                                                  status: int) -> None:
    headers = {"origin": ORIGIN, "content-type": "text/plain"} | ({} if site is None else {"sec-fetch-site": site})
    client = TestClient(make_app(Host(llm, "demo", ServeConfig(cors_origin=origins))))
    assert client.post("/tokenize", content=b'{"text": "a"}', headers=headers).status_code == status
    assert client.get("/", headers=headers).status_code == 200  # a link to the page


def test_a_wrong_method_is_told_the_right_ones(host: Host) -> None:
    got = TestClient(make_app(host)).get("/v1/chat/completions")
    assert got.status_code == 405 and got.headers["allow"] == "POST" and got.json()["error"]["message"]


@pytest.mark.parametrize("origins", [(), (ORIGIN,)])
def test_pages_of_other_origins(llm: LLM, origins: tuple[str, ...]) -> None:
    with serving(Host(llm, "demo", ServeConfig(cors_origin=origins, api_key=("k",)))) as address:
        ask = {"origin": ORIGIN, "access-control-request-method": "POST",
               "access-control-request-headers": "authorization,content-type"}
        before = httpx.options(address + "/v1/chat/completions", headers=ask)
        got = httpx.get(address + "/v1/models", headers={"origin": ORIGIN, "authorization": "Bearer k"})
        other = httpx.get(address + "/v1/models", headers={"origin": "https://other.example", "x-api-key": "k"})
        denied = httpx.get(address + "/v1/models", headers={"origin": ORIGIN})
    assert got.status_code == other.status_code == 200 and denied.status_code == 401
    assert "access-control-allow-origin" not in other.headers
    for answer in (before, got, denied):
        assert answer.headers.get("access-control-allow-origin") == (ORIGIN if origins else None)
    assert before.status_code == (200 if origins else 401)
    if origins:
        assert "x-request-id" in got.headers["access-control-expose-headers"]
