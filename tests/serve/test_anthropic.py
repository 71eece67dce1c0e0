"""The server as Anthropic's own client sees it."""
from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import msgspec
import pytest
from api_documents import API, document, mutated, names, validate

from blackwell_infer.errors import DeadlineError
from blackwell_infer.serve.anthropic_reply import Stream, message
from blackwell_infer.serve.conversation import Delta
from blackwell_infer.text.tools import CallArguments, CallStart
from blackwell_infer.types import Usage

QUESTION: list[Any] = [{"role": "user", "content": "What is 12 times 12?"}]
WEATHER: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL: Any = {
    "name": "get_weather", "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
BASE: Any = {"model": "demo", "max_tokens": 60, "extra_body": {"temperature": 0}}
RAW: Any = {"model": "demo", "max_tokens": 60, "temperature": 0}


@pytest.fixture
def client(address: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=address, api_key="any", max_retries=0, timeout=60) as made:
        yield made


def test_an_answer(client: anthropic.Anthropic) -> None:
    got = client.messages.create(messages=QUESTION, system=[{"type": "text", "text": "Be brief."}], **BASE)
    assert [block.type for block in got.content] == ["text"] and "144" in got.content[0].text
    assert (got.stop_reason, got.stop_sequence) == ("end_turn", None)
    assert got.usage.output_tokens > 0


def test_a_schema_that_cannot_be_enforced_is_refused_of_strict_tools_only(client: anthropic.Anthropic) -> None:
    schema = TOOL["input_schema"] | {"propertyNames": {"pattern": "^c"}}
    loose: Any = TOOL | {"input_schema": schema}
    got = client.messages.create(messages=WEATHER, tools=[loose], tool_choice={"type": "any"}, **BASE)
    assert got.stop_reason == "tool_use" and got.content[0].name == "get_weather"
    with pytest.raises(anthropic.BadRequestError, match="propertyNames"):
        client.messages.create(messages=WEATHER, tools=[loose | {"strict": True}], **BASE)


def test_a_stream_adds_up_to_the_answer(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(messages=QUESTION, **BASE)
    with client.messages.stream(messages=QUESTION, **BASE) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == "end_turn" and final.usage.output_tokens == whole.usage.output_tokens


def test_counts_agree(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="demo", messages=QUESTION, tools=[TOOL]).input_tokens
    usage = client.messages.create(messages=QUESTION, tools=[TOOL], tool_choice={"type": "none"}, **BASE).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens
    again = client.messages.create(messages=QUESTION, tools=[TOOL], tool_choice={"type": "none"}, **BASE).usage
    assert counted == again.input_tokens + again.cache_read_input_tokens


def test_thinking(client: anthropic.Anthropic) -> None:
    ask = BASE | {"max_tokens": 300, "messages": QUESTION, "thinking": {"type": "enabled", "budget_tokens": 200}}
    whole = client.messages.create(**ask)
    assert whole.content[0].type == "thinking"
    assert whole.content[0].thinking and whole.content[0].signature
    with client.messages.stream(**ask) as stream:
        kinds = [event.delta.type for event in stream if event.type == "content_block_delta"]
        assert stream.get_final_message().content == whole.content
    assert kinds.count("signature_delta") == 1
    back = [*QUESTION, {"role": "assistant", "content": whole.content}, {"role": "user", "content": "Hello"}]
    assert client.messages.create(messages=back, **BASE).content[0].type == "text"


def test_a_budget_of_thinking(client: anthropic.Anthropic) -> None:
    def thought(thinking: Any, **more: Any) -> str:
        asked: Any = [{"role": "user", "content": "How many days are in 3 weeks?"}]
        got = client.messages.create(messages=asked, thinking=thinking, **BASE, **more)
        assert got.content[-1].type in ("text", "tool_use")
        return "".join(block.thinking for block in got.content if block.type == "thinking")

    whole = thought({"type": "adaptive"})
    for budget in (1, 3):
        short = thought({"type": "enabled", "budget_tokens": budget})
        assert whole.startswith(short) and 0 < len(short) < len(whole)
        tool: Any = {"tools": [TOOL], "tool_choice": {"type": "any"}}
        assert 0 < len(thought({"type": "enabled", "budget_tokens": budget}, **tool)) < len(whole)
    assert thought({"type": "disabled"}) == ""
    with pytest.raises(anthropic.BadRequestError, match="less than max_tokens"):
        thought({"type": "enabled", "budget_tokens": 60})


@pytest.mark.parametrize("streaming", [False, True])
def test_a_tool_is_called_and_answered(client: anthropic.Anthropic, streaming: bool) -> None:
    ask = BASE | {"messages": WEATHER, "tools": [TOOL], "tool_choice": {"type": "any"}}
    if streaming:
        with client.messages.stream(**ask) as stream:
            got = stream.get_final_message()
    else:
        got = client.messages.create(**ask)
    assert got.stop_reason == "tool_use"
    call = next(block for block in got.content if block.type == "tool_use")
    assert call.name == "get_weather" and isinstance(call.input["city"], str)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "18 degrees"}]}
    turns = [*WEATHER, {"role": "assistant", "content": got.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(messages=turns, tools=[TOOL], **BASE)
    assert after.content[0].type == "text" and after.content[0].text
    with pytest.raises(anthropic.BadRequestError, match="has no tool_result"):
        client.messages.create(messages=turns[:2], tools=[TOOL], **BASE)


def test_a_named_tool(client: anthropic.Anthropic) -> None:
    choice: Any = {"type": "tool", "name": "other", "disable_parallel_tool_use": True}
    got = client.messages.create(messages=WEATHER, tools=[TOOL, TOOL | {"name": "other"}], tool_choice=choice, **BASE)
    assert [block.name for block in got.content if block.type == "tool_use"] == ["other"]


def test_what_ends_an_answer(client: anthropic.Anthropic) -> None:
    stopped = client.messages.create(messages=QUESTION, stop_sequences=["zzz", "44"], **BASE)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "44")
    assert "44" not in stopped.content[0].text
    short = client.messages.create(messages=QUESTION, **BASE | {"max_tokens": 1})
    assert short.stop_reason == "max_tokens" and short.usage.output_tokens == 1


def test_a_prefill_is_continued(client: anthropic.Anthropic) -> None:
    got = client.messages.create(messages=[*QUESTION, {"role": "assistant", "content": "12 × 12 ="}], **BASE)
    assert got.content[0].text.strip() == "144."


def test_a_schema_is_followed(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 144]}}, "required": ["n"],
              "additionalProperties": False}
    format: Any = {"format": {"type": "json_schema", "schema": schema}}
    got = client.messages.create(messages=QUESTION, output_config=format, **BASE)
    assert msgspec.json.decode(got.content[0].text)["n"] in (1, 144)
    older = client.messages.create(messages=QUESTION, **BASE | {"extra_body": {"output_format": format["format"]}})
    assert msgspec.json.decode(older.content[0].text)["n"] in (1, 144)
    with pytest.raises(anthropic.BadRequestError, match="one of them"):
        client.messages.create(messages=QUESTION, output_config=format,
                               **BASE | {"extra_body": {"output_format": format["format"]}})


def test_an_answer_has_the_id_of_its_request(client: anthropic.Anthropic, address: str) -> None:
    got = client.messages.create(messages=QUESTION, **BASE)
    assert got._request_id
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(messages=QUESTION, **BASE | {"model": "other"})
    assert caught.value.request_id == caught.value.body["request_id"] and caught.value.type == "not_found_error"
    assert "request-id" not in httpx.get(address + "/v1/models").headers


def test_the_models(client: anthropic.Anthropic, address: str) -> None:
    (model,) = client.models.list()
    assert (model.id, model.type) == ("demo", "model") and model == client.models.retrieve("demo")
    assert not client.models.list(after_id="demo").data
    with pytest.raises(anthropic.NotFoundError, match="not served"):
        client.models.retrieve("other")
    for wrong in ({"after_id": "x"}, {"limit": 0}):
        with pytest.raises(anthropic.BadRequestError):
            client.models.list(**wrong)
    found = httpx.get(address + "/v1/models", headers={"anthropic-version": "2023-06-01"}).json()
    validate(found, "anthropic", "ListResponse_ModelInfo_")
    validate(found["data"][0], "anthropic", "ModelInfo")


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/v1/messages", 405), ("POST", "/v1/messages/batches", 404), ("DELETE", "/v1/messages/count_tokens", 405),
    ("GET", "/v1/messages/batches/x/results", 404), ("POST", "/v1/messages", 400), ("POST", "/v1/files", 404)])
def test_every_error_is_in_this_form(address: str, method: str, path: str, status: int) -> None:
    got = httpx.request(method, address + path, headers={"anthropic-version": "2023-06-01"}, timeout=60)
    assert got.status_code == status
    validate(got.json(), "anthropic", "ErrorResponse")
    assert got.json()["request_id"] == got.headers["request-id"]


def test_the_asynchronous_client(address: str) -> None:
    async def talk() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=address, api_key="any", max_retries=0, timeout=60) as client:
            async def one() -> str:
                async with client.messages.stream(messages=QUESTION, **BASE) as stream:
                    return "".join([text async for text in stream.text_stream])
            return await asyncio.gather(one(), one(), one())
    answers = asyncio.run(talk())
    assert len(set(answers)) == 1 and "144" in answers[0]


def test_refusals(client: anthropic.Anthropic) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x.png"}}
    with pytest.raises(anthropic.BadRequestError, match="reads text only") as caught:
        client.messages.create(messages=[{"role": "user", "content": [image]}], **BASE)
    assert caught.value.body["type"] == "error" and caught.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError, match="not served"):
        client.messages.create(messages=QUESTION, **BASE | {"model": "other"})
    with pytest.raises(anthropic.BadRequestError, match="web_search"):
        search: Any = {"type": "web_search_20250305", "name": "web_search"}
        client.messages.create(messages=QUESTION, tools=[search], **BASE)
    with pytest.raises(anthropic.BadRequestError, match="none of the tools"):
        client.messages.create(messages=QUESTION, tools=[TOOL], tool_choice={"type": "tool", "name": "x"}, **BASE)


def test_the_published_description_holds(address: str) -> None:
    wrong = httpx.post(address + "/v1/messages", json={"model": "demo"}, timeout=60)
    assert wrong.status_code == 400
    validate(wrong.json(), "anthropic", "ErrorResponse")
    ask = RAW | {"messages": WEATHER, "tools": [TOOL], "tool_choice": {"type": "any"}}
    for body in (RAW | {"messages": QUESTION}, ask):
        validate(httpx.post(address + "/v1/messages", json=body, timeout=60).json(), "anthropic", "Message")
        stream = httpx.post(address + "/v1/messages", json=body | {"stream": True}, timeout=60).text
        for line in stream.splitlines():
            if line.startswith("data: "):
                validate(msgspec.json.decode(line[6:]), "anthropic", "MessageStreamEvent")


@pytest.mark.parametrize("recorded", ["basic_response", "tool_use_response"])
def test_events_come_in_the_recorded_order(address: str, recorded: str) -> None:
    document("anthropic")
    want = names((API / f"anthropic/sdk-streaming-fixtures/{recorded}.txt").read_text())
    tools = {"tools": [TOOL], "tool_choice": {"type": "any"}} if recorded.startswith("tool") else {}
    body = RAW | {"messages": WEATHER if tools else QUESTION, "stream": True, **tools}
    got = names(httpx.post(address + "/v1/messages", json=body, timeout=60).text)
    assert got[:3] == want[:3] and got[-3:] == want[-3:] and set(got) == set(want)


def test_mutated_bodies_are_never_a_500(address: str) -> None:
    chance = random.Random(5)
    seed = RAW | {"max_tokens": 2, "system": "s", "messages": [
        *WEATHER,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "get_weather", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]},
    ], "tools": [TOOL], "tool_choice": {"type": "auto"}, "thinking": {"type": "disabled"}, "stop_sequences": ["x"]}
    with httpx.Client(timeout=60) as http:
        for i in range(100):
            path = ("/v1/messages", "/v1/messages/count_tokens")[i % 2]
            got = http.post(address + path, content=msgspec.json.encode(mutated(seed, chance)))
            assert got.status_code in (200, 400, 404), got.text
            assert got.status_code == 200 or got.json()["type"] == "error"


def test_blocks_follow_one_another() -> None:
    stream = Stream("msg_1", "demo", 7)
    pieces = (
        Delta(reasoning="so"), Delta(reasoning=" it is", text="Yes"), Delta(text="."),
        Delta(calls=(CallStart(0, "a", "f"), CallArguments(0, '{"x":'))),
        Delta(calls=(CallArguments(0, " 1}"), CallStart(1, "b", "g"))),
        Delta(finish="tool_calls", usage=Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=4)),
    )
    events = [*stream.start(), *(event for piece in pieces for event in stream.push(piece))]
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == [0, 1, 2, 3]
    assert [i for i, event in enumerate(events) if event["type"] == "ping"] == [2]
    got = message(events)
    said = [(b["type"], b.get("thinking") or b.get("text") or b.get("input")) for b in got["content"]]
    assert said == [("thinking", "so it is"), ("text", "Yes."), ("tool_use", {"x": 1}), ("tool_use", {})]
    assert got["stop_reason"] == "tool_use"
    assert (got["usage"]["input_tokens"], got["usage"]["cache_read_input_tokens"]) == (3, 4)


def test_a_broken_answer_ends_in_an_error() -> None:
    events = [*Stream("msg_1", "demo", 7).push(Delta(text="a", finish="error", failure=DeadlineError("too late")))]
    assert events[-1]["type"] == "error"
    assert events[-1]["error"] == {"type": "timeout_error", "message": "too late"}
    assert events[-2]["type"] == "content_block_stop"
    (event,) = Stream("msg_1", "demo", 7).push(Delta(finish="cancelled"))
    assert event["error"] == {"type": "overloaded_error", "message": "the answer was cancelled"}
