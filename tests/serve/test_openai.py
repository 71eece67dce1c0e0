"""The server as OpenAI's own client sees it."""
from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import idle, serving

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.serve.host import Host

QUESTION = [{"role": "user", "content": "What is 12 times 12?"}]
PATCHES = (b"", b"null", b"-1", b"1e400", b"[]", b"{}", b'"', b"\xff", b"99999999999999999999", b"\\ud800")
TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address + "/v1", api_key="any", max_retries=0, timeout=60) as made:
        yield made


def test_an_answer(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    assert "144" in got.choices[0].message.content
    assert got.choices[0].finish_reason == "stop"
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, logprobs=True)
    chunks = list(client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, stream=True,
                                                 logprobs=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    told = [t.token for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert told == [t.token for t in whole.choices[0].logprobs.content]


async def _asynchronous(address: str) -> str:
    async with openai.AsyncOpenAI(base_url=address + "/v1", api_key="any", max_retries=0) as made:
        stream = await made.chat.completions.create(model="demo", messages=QUESTION, temperature=0, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_asynchronous_client(address: str) -> None:
    import asyncio

    assert "144" in asyncio.run(_asynchronous(address))


def test_several_answers_with_a_seed(client: openai.OpenAI) -> None:
    def ask() -> list[str]:
        got = client.chat.completions.create(model="demo", messages=QUESTION, n=2, seed=7, temperature=1.5,
                                             max_tokens=12)
        return [c.message.content for c in got.choices]

    first = ask()
    assert len(first) == 2 and first == ask()


def test_stop_string_and_length(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, stop=["="])
    assert "=" not in got.choices[0].message.content and got.choices[0].finish_reason == "stop"
    got = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_completion_tokens=2)
    assert got.choices[0].finish_reason == "length" and got.usage.completion_tokens == 2


def test_reasoning_comes_apart(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_tokens=80,
                                         extra_body={"enable_thinking": True})
    assert got.choices[0].message.model_extra["reasoning_content"]


def test_tools_loop(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    got = client.chat.completions.create(model="demo", messages=messages, tools=[TOOL], temperature=0,
                                         tool_choice="required", max_tokens=100)
    assert got.choices[0].finish_reason == "tool_calls"
    call = got.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and set(json.loads(call.function.arguments)) == {"city"}
    chunks = list(client.chat.completions.create(model="demo", messages=messages, tools=[TOOL], temperature=0,
                                                 tool_choice="required", max_tokens=100, stream=True))
    parts = [t.function.arguments for c in chunks for t in c.choices[0].delta.tool_calls or ()]
    assert json.loads("".join(parts)) == json.loads(call.function.arguments)
    messages += [got.choices[0].message.model_dump(exclude_none=True),
                 {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21}'}]
    again = client.chat.completions.create(model="demo", messages=messages, tools=[TOOL], temperature=0, max_tokens=40)
    assert again.choices[0].message.content


def test_structured_output(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"answer": {"enum": [1, 144]}}, "required": ["answer"],
              "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    got = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_tokens=40,
                                         response_format=wanted)
    assert json.loads(got.choices[0].message.content)["answer"] in (1, 144)


def test_completions(client: openai.OpenAI) -> None:
    got = client.completions.create(model="demo", prompt=["One, two,", "A, B,"], max_tokens=3, temperature=0, echo=True)
    assert [c.text.startswith(p) for c, p in zip(got.choices, ("One, two,", "A, B,"), strict=True)] == [True, True]
    chunks = list(client.completions.create(model="demo", prompt=["One, two,", "A, B,"], max_tokens=3, temperature=0,
                                            echo=True, stream=True))
    for i in range(2):
        assert "".join(c.choices[0].text for c in chunks if c.choices[0].index == i) == got.choices[i].text
    ids = httpx.post(f"{client.base_url}".removesuffix("/v1/") + "/tokenize", json={"text": "One, two,"}).json()
    same = client.completions.create(model="demo", prompt=ids["tokens"], max_tokens=3, temperature=0, logprobs=1)
    assert "One, two," + same.choices[0].text == got.choices[0].text and len(same.choices[0].logprobs.tokens) == 3


def test_models_and_state(client: openai.OpenAI, address: str) -> None:
    assert [m.id for m in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")
    assert httpx.get(address + "/health").status_code == httpx.get(address + "/ready").status_code == 200
    metrics = httpx.get(address + "/metrics").text
    assert "bwinfer_generated_tokens_total" in metrics and "bwinfer_disk_read_total" in metrics
    told = httpx.get(address + "/v1/engine").json()
    assert told["step_bytes"] >= 0 and told["bytes_per_second"] >= 0 and told["roofline_share"] is None
    assert "bwinfer_step_bytes" in metrics and "bwinfer_roofline_share" not in metrics, "NumPy has no roofline"
    told = httpx.post(address + "/tokenize", json={"text": "Hallo"}).json()["tokens"]
    assert httpx.post(address + "/detokenize", json={"tokens": told}).json() == {"text": "Hallo"}


@pytest.mark.parametrize(("change", "status", "param"), [
    ({"unheard_of": 1}, 400, "unheard_of"),
    ({"model": "gpt"}, 404, "model"),
    ({"n": "two"}, 400, "n"),
    ({"n": 17}, 400, "n"),
    ({"messages": []}, 400, None),
    ({"temperature": -1}, 400, None),
    ({"max_tokens": 0}, 400, None),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, 400, None),
    ({"response_format": {"type": "yaml"}}, 400, "response_format"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
     400, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x" * 200_000}]}, 413, None),
    ({"messages": [{"role": "user", "content": "x y " * 20_000}]}, 400, None),
    ({"user": "somebody", "metadata": {"a": "b"}, "store": False, "max_tokens": 1}, 200, None),
])
def test_refusals(address: str, change: dict[str, object], status: int, param: str | None) -> None:
    got = httpx.post(address + "/v1/chat/completions", json={"model": "demo", "messages": QUESTION, **change},
                     timeout=60)
    assert got.status_code == status, got.text
    if status != 200:
        assert got.json()["error"]["message"] and got.json()["error"]["param"] == param


def test_a_full_queue(address: str, host: Host) -> None:
    body = {"messages": QUESTION, "n": 16, "max_tokens": 4}
    got = httpx.post(address + "/v1/chat/completions", json=body, timeout=60)
    assert got.status_code == 429 and got.headers["retry-after"]


def test_a_deadline(address: str) -> None:
    body = {"messages": QUESTION, "ignore_eos": True, "max_tokens": 1000, "timeout": 0.2}
    assert httpx.post(address + "/v1/chat/completions", json=body, timeout=60).status_code == 504


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_is_cancelled(address: str, llm: LLM, stream: bool) -> None:
    body = {"messages": QUESTION, "ignore_eos": True, "max_tokens": 3000, "stream": stream}
    if stream:
        with httpx.stream("POST", address + "/v1/chat/completions", json=body, timeout=60) as got:
            next(got.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address + "/v1/chat/completions", json=body, timeout=0.5)
    assert idle(llm, 3)


def test_keys(llm: LLM) -> None:
    with serving(Host(llm, "demo", ServeConfig(api_key=("secret",)))) as address:
        assert httpx.get(address + "/v1/models").status_code == 401
        assert httpx.get(address + "/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(address + "/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
        assert httpx.get(address + "/v1/models", headers={"x-api-key": "secret"}).status_code == 200
        assert httpx.get(address + "/health").status_code == 200


def test_draining(llm: LLM) -> None:
    host = Host(llm, "demo", ServeConfig())
    with serving(host) as address:
        host.draining = True
        assert httpx.get(address + "/ready").status_code == 503
        got = httpx.post(address + "/v1/chat/completions", json={"messages": QUESTION})
        assert got.status_code == 503 and got.headers["retry-after"]


def test_bodies_changed_at_random(address: str, llm: LLM) -> None:
    body = json.dumps({"model": "demo", "messages": QUESTION, "max_tokens": 1, "tools": [TOOL], "stop": ["a"],
                       "logit_bias": {"5": 1}, "stream": False, "temperature": 0.5, "n": 1}).encode()
    draw = random.Random(5)
    with httpx.Client(timeout=30) as client:
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
            for _ in range(75):
                changed = bytearray(body)
                for _ in range(draw.randint(1, 4)):
                    at = draw.randrange(len(changed))
                    changed[at : at + draw.choice((0, 1, 5))] = draw.choice(PATCHES)
                got = client.post(address + path, content=bytes(changed))
                assert got.status_code < 500, (bytes(changed), got.text)
    assert idle(llm, 5)


def test_answers_follow_the_published_document(address: str, shared_data: Path) -> None:
    import jsonschema
    yaml = pytest.importorskip("yaml")
    document = yaml.safe_load((shared_data / "api" / "openai" / "openapi.yaml").read_text(encoding="utf-8"))

    def holds(name: str, value: object) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    ask = {"model": "demo", "messages": QUESTION, "max_tokens": 3}
    holds("CreateChatCompletionResponse", httpx.post(address + "/v1/chat/completions", json=ask, timeout=60).json())
    holds("ListModelsResponse", httpx.get(address + "/v1/models").json())
    plain = {"model": "demo", "prompt": "One,", "max_tokens": 3}
    holds("CreateCompletionResponse", httpx.post(address + "/v1/completions", json=plain, timeout=60).json())


def test_the_time_between_is_short(address: str) -> None:
    """A stream arrives piece by piece, and not at its end."""
    times = []
    body = {"messages": QUESTION, "ignore_eos": True, "max_tokens": 40, "stream": True}
    with httpx.stream("POST", address + "/v1/chat/completions", json=body, timeout=60) as got:
        times = [time.perf_counter() for line in got.iter_lines() if line]
    assert times[-1] - times[0] > 0.05


def test_reasoning_tokens_are_counted(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "messages": [{"role": "user", "content": "What is 12 times 12?"}], "temperature": 0,
                  "max_tokens": 60}
    got = client.chat.completions.create(**asked, reasoning_effort="high")
    details = got.usage and got.usage.completion_tokens_details
    assert got.usage and details and 0 < (details.reasoning_tokens or 0) < got.usage.completion_tokens
