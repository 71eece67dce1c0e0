"""The Responses API as OpenAI's own client sees it."""
from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import msgspec
import openai
import pytest
from api_documents import API, document, mutated, names, validate
from served import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.errors import DeadlineError
from blackwell_infer.serve import openai_responses
from blackwell_infer.serve.conversation import Ask, Delta, Finish
from blackwell_infer.serve.errors import HttpError, error_response
from blackwell_infer.serve.host import Host
from blackwell_infer.serve.openai_responses import Store, routes
from blackwell_infer.serve.openai_responses_reply import Stream
from blackwell_infer.serve.openai_responses_request import Body
from blackwell_infer.serve.truncation import shorter
from blackwell_infer.text.tools import CallArguments, CallStart
from blackwell_infer.types import Message

QUESTION = "What is 12 times 12?"
BASE: Any = {"model": "demo", "temperature": 0, "max_output_tokens": 60}
TOOL: Any = {
    "type": "function", "name": "get_weather", "description": "Weather of a city", "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALLING: Any = {"input": "What is the weather in Paris?", "tools": [TOOL], "tool_choice": "required"}


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address + "/v1", api_key="any", max_retries=0, timeout=60) as made:
        yield made


def test_an_answer(client: openai.OpenAI) -> None:
    got = client.responses.create(input=QUESTION, instructions="Be brief.", **BASE)
    assert got.status == "completed" and "144" in got.output_text
    assert got.usage.total_tokens == got.usage.input_tokens + got.usage.output_tokens
    item = {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}
    assert client.responses.create(input=[item], instructions="Be brief.", **BASE).output_text == got.output_text


def test_a_stream_adds_up_to_the_answer(client: openai.OpenAI) -> None:
    with client.responses.stream(input=QUESTION, **BASE) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text == client.responses.create(input=QUESTION, **BASE).output_text


def test_a_conversation_goes_on(client: openai.OpenAI) -> None:
    first = client.responses.create(input="My name is Ada.", **BASE)
    next = client.responses.create(input=QUESTION, previous_response_id=first.id, **BASE)
    alone = client.responses.create(input=QUESTION, store=False, **BASE)
    assert next.usage.input_tokens > alone.usage.input_tokens
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    for gone in (first.id, alone.id):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)
    with pytest.raises(openai.NotFoundError, match="is stored"):
        client.responses.create(input=QUESTION, previous_response_id=first.id, **BASE)


def test_what_went_in_is_listed(client: openai.OpenAI) -> None:
    said: Any = [{"role": "user", "content": text} for text in ("one", "two", "three")]
    id = client.responses.create(input=said, **BASE).id
    items = client.responses.input_items.list(id, order="asc", limit=2)
    assert items.has_more and [item.content[0].text for item in items] == ["one", "two", "three"]
    assert client.responses.input_items.list(id, limit=1).data[0].content[0].text == "three"
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.responses.input_items.list(id, limit=0)


@pytest.mark.parametrize("stored", [False, True])
def test_a_tool_is_called_and_answered(client: openai.OpenAI, stored: bool) -> None:
    got = client.responses.create(store=stored, **BASE, **CALLING)
    call = next(item for item in got.output if item.type == "function_call")
    assert call.name == "get_weather" and isinstance(msgspec.json.decode(call.arguments)["city"], str)
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}
    before: list[Any] = [] if stored else [{"role": "user", "content": CALLING["input"]}, *got.output]
    after = client.responses.create(
        input=[*before, answer], previous_response_id=got.id if stored else None, tools=[TOOL], **BASE)
    assert after.output_text
    with pytest.raises(openai.BadRequestError, match="no function_call before"):
        client.responses.create(input=[answer], **BASE)
    with client.responses.stream(**BASE, **CALLING) as stream:
        assert stream.get_final_response().output[-1].type == "function_call"


def test_a_schema_is_followed(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 144]}}, "required": ["n"],
              "additionalProperties": False}
    format: Any = {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}}
    got = client.responses.create(input=QUESTION, text=format, **BASE)
    assert msgspec.json.decode(got.output_text)["n"] in (1, 144)


def test_reasoning_and_the_limit(client: openai.OpenAI) -> None:
    got = client.responses.create(input=QUESTION, reasoning={"effort": "high"}, **BASE)
    assert got.output[0].type == "reasoning" and got.output[0].content[0].text
    assert got.usage.output_tokens_details.reasoning_tokens > 0
    short = client.responses.create(input=QUESTION, **BASE | {"max_output_tokens": 1})
    assert short.status == "incomplete" and short.incomplete_details.reason == "max_output_tokens"


def test_a_budget_of_reasoning(client: openai.OpenAI) -> None:
    got = client.responses.create(input=QUESTION, extra_body={"thinking_budget": 3}, **BASE)
    assert got.usage.output_tokens_details.reasoning_tokens == 3 and got.output_text
    off = client.responses.create(input=QUESTION, extra_body={"thinking_budget": 0}, **BASE)
    assert [item.type for item in off.output] == ["message"]


def test_the_asynchronous_client(address: str) -> None:
    async def talk() -> list[str]:
        async with openai.AsyncOpenAI(base_url=address + "/v1", api_key="any", max_retries=0, timeout=60) as client:
            one, two = await asyncio.gather(*(client.responses.create(input=QUESTION, **BASE) for _ in range(2)))
            return [one.output_text, two.output_text]
    answers = asyncio.run(talk())
    assert len(set(answers)) == 1 and "144" in answers[0]


def test_refusals(client: openai.OpenAI) -> None:
    image: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1/x"}]}]
    with pytest.raises(openai.BadRequestError, match="reads text only"):
        client.responses.create(input=image, **BASE)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.create(input=QUESTION, background=True, **BASE)
    with pytest.raises(openai.BadRequestError, match="web_search"):
        client.responses.create(input=QUESTION, tools=[{"type": "web_search"}], **BASE)


def test_the_published_description_holds(address: str) -> None:
    kinds = {schema["properties"]["type"]["enum"][0]: name
             for name, schema in document("openai")["components"]["schemas"].items()
             if name.startswith("Response") and name.endswith("Event") and "type" in schema.get("properties", {})}
    asks = ({"input": QUESTION}, CALLING, {"input": QUESTION, "reasoning": {"effort": "low"}})
    for body in (BASE | ask for ask in asks):
        validate(httpx.post(address + "/v1/responses", json=body, timeout=60).json(), "openai", "Response")
        stream = httpx.post(address + "/v1/responses", json=body | {"stream": True}, timeout=60).text
        for line in stream.splitlines():
            if line.startswith("data: "):
                event = msgspec.json.decode(line[6:])
                validate(event, "openai", kinds[event["type"]])


def test_events_come_in_the_recorded_order(address: str) -> None:
    document("openai")
    recorded = "test_openai_instructions_with_responses_logprobs_streaming.yaml"
    want = names((API / "pydantic-ai-cassettes/test_openai" / recorded).read_text())
    got = httpx.post(address + "/v1/responses", json=BASE | {"input": QUESTION, "stream": True}, timeout=60).text
    assert names(got) == want


def test_items_follow_one_another(host: Host) -> None:
    stream = Stream("resp_1", "demo", Body(model="demo", input="x"), 0.0, host.llm.tokenizer)
    pieces = (
        Delta(reasoning="so", token_ids=(1, 2)), Delta(text="Yes"),
        Delta(calls=(CallStart(0, "a", "f"), CallArguments(0, "{}"))), Delta(finish="tool_calls"),
    )
    events = [*stream.start(), *(event for piece in pieces for event in stream.push(piece))]
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["reasoning", "message", "function_call"]
    assert all(item["status"] == "completed" for item in events[-1]["response"]["output"])
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    broken = [*stream.push(Delta(finish="error", failure=DeadlineError("too late")))]
    assert broken[-1]["type"] == "response.failed" and broken[-1]["response"]["error"]["message"] == "too late"


@pytest.mark.parametrize(("finish", "kept"), [("stop", True), ("length", True), ("cancelled", False), ("error", False)])
def test_only_what_was_not_broken_off_is_stored(finish: Finish, kept: bool, host: Host,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    status = 200 if kept else 503
    with TestClient(Starlette(routes=routes(host), exception_handlers={HttpError: refused})) as http:
        scripted(monkeypatch, Delta(text="Yes"), Delta(finish=finish))
        assert http.post("/v1/responses", json=BASE | {"input": "x"}).status_code == status
        text = http.post("/v1/responses", json=BASE | {"input": "x", "stream": True}).text
        id = msgspec.json.decode(text.rsplit("data: ", 1)[1])["response"]["id"]
        assert http.get(f"/v1/responses/{id}").status_code == (200 if kept else 404)


@pytest.mark.parametrize("arguments", ["", '{"city": "Pa'])
def test_a_call_that_was_cut_off_does_not_end_the_conversation(arguments: str, host: Host,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(Starlette(routes=routes(host))) as http:
        scripted(monkeypatch, Delta(calls=(CallStart(0, "a", "f"), CallArguments(0, arguments))),
                 Delta(finish="length"))
        first = http.post("/v1/responses", json=BASE | {"input": "x"}).json()
        assert first["status"] == "incomplete" and first["output"][0]["arguments"] == arguments
        after = http.post("/v1/responses", json=BASE | {"input": "y", "previous_response_id": first["id"]})
        assert after.status_code == 200


def scripted(monkeypatch: pytest.MonkeyPatch, *pieces: Delta) -> None:
    """Let every answer be these pieces."""
    async def converse(host: Host, ask: Ask) -> AsyncGenerator[Delta, None]:
        async def told() -> AsyncGenerator[Delta, None]:
            for piece in pieces:
                yield piece
        return told()
    monkeypatch.setattr(openai_responses, "converse", converse)


def refused(request: Request, error: Exception) -> Response:
    return error_response(request, error)


def test_the_store_forgets_what_was_used_least() -> None:
    store = Store(1000, 9)
    for id in "abc":
        store.put(id, {"x": "y" * 300}, [], 0)
        if id != "c":
            store.get("a")
    store.put("d", {"x": "y" * 300}, [], 0)
    with pytest.raises(HttpError):
        store.get("b")
    assert store.get("d").response
    store.put("e", {"x": "y" * 2000}, [], 0)
    with pytest.raises(HttpError):
        store.get("e")
    few = Store(1000, 2)
    for id in "abc":
        few.put(id, {}, [], 0)
    with pytest.raises(HttpError):
        few.get("a")
    assert few.get("b").response == few.get("c").response == b"{}"


def test_log_probabilities(client: openai.OpenAI) -> None:
    ask: Any = BASE | {"input": QUESTION, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    got = client.responses.create(**ask)
    said = got.output[0].content[0].logprobs
    assert "".join(item.token for item in said) == got.output_text
    assert all(len(item.top_logprobs) == 2 and item.top_logprobs[0].logprob >= item.logprob for item in said)
    with client.responses.stream(**ask) as stream:
        told = [item.token for event in stream if event.type == "response.output_text.delta" for item in event.logprobs]
    assert told == [item.token for item in said]
    thought = client.responses.create(**ask | {"extra_body": {"thinking_budget": 3}})
    assert "".join(item.token for item in thought.output[1].content[0].logprobs) == thought.output_text
    assert client.responses.create(input=QUESTION, **BASE).output[0].content[0].logprobs == []
    for wrong in ({"include": []}, {"top_logprobs": 21}, {"include": ["file_search_call.results"], "top_logprobs": 0}):
        with pytest.raises(openai.BadRequestError):
            client.responses.create(**ask | wrong)


def test_what_is_too_long_is_refused_or_shortened() -> None:
    with (LLM(device="numpy", max_context=256) as llm, serving(Host(llm, "demo", ServeConfig())) as address,
          openai.OpenAI(base_url=address + "/v1", api_key="any", max_retries=0) as client):
        too_long(client, 256)


def too_long(client: openai.OpenAI, context: int) -> None:
    filler = "one two three four " * (context // 24)
    said: Any = [{"role": "user", "content": filler}, {"role": "assistant", "content": "So?"}] * 8
    ask: Any = BASE | {"input": [*said, {"role": "user", "content": QUESTION}], "instructions": "Be brief."}
    for more in ({}, {"truncation": "disabled"}):
        with pytest.raises(openai.BadRequestError, match="context holds"):
            client.responses.create(**ask, **more)
    got = client.responses.create(truncation="auto", **ask)
    assert got.output_text and got.truncation == "auto"
    assert context // 2 < got.usage.input_tokens <= context - 60
    assert client.responses.input_items.list(got.id).has_more is False
    with pytest.raises(openai.BadRequestError, match="context holds"):
        client.responses.create(truncation="auto", **BASE | {"input": filler * 8})


def test_calls_stay_with_their_results() -> None:
    roles = ["system", "user", "assistant", "tool", "tool", "assistant",
             "user", "assistant", "tool", "assistant", "tool"]
    messages = tuple(Message(role=role, content=str(i)) for i, role in enumerate(roles))
    kept = [[int(message.content) for message in one] for one in shorter(messages)]
    assert kept == [[0, 6, 7, 8, 9, 10], [0, 6, 9, 10]]
    assert [*shorter(messages[:2])] == [*shorter(messages[:1])] == []


def test_mutated_bodies_are_never_a_500(address: str) -> None:
    chance = random.Random(7)
    seed = BASE | CALLING | {"max_output_tokens": 2, "tool_choice": "auto", "instructions": "s", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
        {"type": "function_call", "call_id": "a", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "x"},
    ], "text": {"format": {"type": "text"}}, "reasoning": {"effort": "none"}, "store": True}
    with httpx.Client(timeout=60) as http:
        for _ in range(100):
            got = http.post(address + "/v1/responses", content=msgspec.json.encode(mutated(seed, chance)))
            assert got.status_code in (200, 400, 404), got.text
