"""The server as OpenAI's own client sees it."""
from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import idle, serving

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.serve import conversation
from blackwell_infer.serve.host import Host

QUESTION = [{"role": "user", "content": "What is 12 times 12?"}]
PATCHES = (b"", b"null", b"-1", b"1e400", b"[]", b"{}", b'"', b"\xff", b"99999999999999999999", b"\\ud800")
TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}

FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": {
    "type": "object", "properties": {"answer": {"enum": [1, 144]}}, "required": ["answer"],
    "additionalProperties": False}}}


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address + "/v1", api_key="any", max_retries=0, timeout=60) as made:
        yield made


def test_an_answer(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    assert "144" in got.choices[0].message.content
    assert got.choices[0].finish_reason == "stop"
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


@pytest.mark.parametrize("name", ["self", "messages", "tools", "continue_final", "add_generation_prompt"])
def test_template_variables_cannot_take_the_place_of_the_conversation(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError, match=name):
        client.chat.completions.create(model="demo", messages=QUESTION, extra_body={"chat_template_kwargs": {name: 1}})


def test_a_grammar_brings_no_reasoning_where_that_is_off(client: openai.OpenAI) -> None:
    """Token 4090 is <think>."""
    asked: Any = {"model": "demo", "messages": QUESTION, "max_tokens": 40, "logit_bias": {"4090": 50}, "temperature": 0}
    tools: Any = {"tools": [TOOL], "tool_choice": "required"}
    for more in ({"response_format": FORMAT}, tools):
        said = client.chat.completions.create(**asked, **more).choices[0]
        assert "reasoning_content" not in (said.message.model_extra or {})
        assert said.message.content or said.message.tool_calls


@pytest.mark.parametrize(("syntax", "definition"), [
    ("regex", "(yes|no)!"), ("lark", 'start: ("yes" | "no") "!"'), ("gbnf", 'root ::= ("yes" | "no") "!"')])
def test_grammars(client: openai.OpenAI, syntax: str, definition: str) -> None:
    form: Any = {"type": "grammar", "syntax": syntax, "definition": definition}
    chat = client.chat.completions.create(model="demo", messages=QUESTION, response_format=form, max_tokens=20,
                                          temperature=0)
    plain = client.completions.create(model="demo", prompt="One", extra_body={"response_format": form}, max_tokens=20,
                                      temperature=0)
    response = client.responses.create(model="demo", input="Well?", text={"format": form}, max_output_tokens=20,
                                       temperature=0)
    for text in (chat.choices[0].message.content, plain.choices[0].text, response.output_text):
        assert text in ("yes!", "no!")
    for wrong in ({"syntax": "json_schema"}, {"definition": 5}, {"definition": "("}):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="demo", messages=QUESTION, response_format=form | wrong)


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


@pytest.mark.parametrize("more", [
    {}, {"tools": [TOOL], "tool_choice": "required"}, {"response_format": FORMAT},
    {"tools": [TOOL], "response_format": FORMAT}])
@pytest.mark.parametrize("budget", [0, 3, 1000])
def test_a_budget_of_reasoning(client: openai.OpenAI, more: dict[str, Any], budget: int) -> None:
    asked = [{"role": "user", "content": "How many days are in 3 weeks?"}]
    ask: Any = {"model": "demo", "messages": asked, "temperature": 0, "max_tokens": 200, **more}
    got = client.chat.completions.create(**ask, extra_body={"thinking_budget": budget})
    spent = got.usage.completion_tokens_details.reasoning_tokens
    assert spent == budget or (3 < spent < budget and budget == 1000)
    message = got.choices[0].message
    assert bool(budget) is ("reasoning_content" in (message.model_extra or {}))
    if message.tool_calls:
        assert set(json.loads(message.tool_calls[0].function.arguments)) == {"city"}
    elif "response_format" in more:
        assert json.loads(message.content)["answer"] in (1, 144)
    else:
        assert message.content and got.choices[0].finish_reason == "stop"
    assert bool(message.tool_calls) or more.get("tool_choice") != "required"


def test_efforts_are_budgets(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(**more: Any) -> int:
        got = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_tokens=80, **more)
        return got.usage.completion_tokens_details.reasoning_tokens

    monkeypatch.setattr(conversation, "EFFORTS", {"low": 2})
    assert spent(reasoning_effort="low") == 2
    assert spent(reasoning_effort="low", extra_body={"thinking_budget": 4}) == 4
    assert spent(reasoning_effort="high") > 4
    assert spent(reasoning_effort="none") == spent(reasoning_effort="minimal") == spent() == 0
    assert spent(reasoning_effort="none", extra_body={"enable_thinking": True}) > 4


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
    got = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_tokens=40,
                                         response_format=FORMAT)
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


def test_a_prompt_is_echoed_with_its_log_probabilities(client: openai.OpenAI, llm: LLM) -> None:
    text = "One, two, three ☃"
    ids = llm.tokenizer.encode(text)
    score = llm.score(ids, top=2)
    ask: Any = {"model": "demo", "prompt": [text, "Yes"], "temperature": 0, "echo": True, "logprobs": 2}
    got = client.completions.create(max_tokens=3, **ask)
    said = got.choices[0].logprobs
    assert said.token_logprobs[0] is None and said.top_logprobs[0] is None
    assert said.token_logprobs[1 : len(ids)] == pytest.approx(score.logprobs[1:].tolist(), abs=1e-4)
    assert len(said.tokens) == len(said.text_offset) == len(said.top_logprobs) == len(ids) + 3
    assert [len(top) for top in said.top_logprobs[1:]] == [2] * (len(ids) + 2)
    assert [text[at:][:1] for at in said.text_offset[1:4]] == [t[:1] for t in said.tokens[1:4]]
    assert said.text_offset[len(ids)] == len(text)
    for value, top in zip(said.token_logprobs[1:], said.top_logprobs[1:], strict=True):
        assert value <= max(top.values()) + 1e-4
    alone = client.completions.create(max_tokens=0, **ask)
    assert [c.text for c in alone.choices] == [text, "Yes"] and alone.usage.completion_tokens == 0
    assert alone.choices[0].logprobs.token_logprobs == said.token_logprobs[: len(ids)]
    chunks = list(client.completions.create(max_tokens=3, stream=True, **ask))
    told = [t for c in chunks if c.choices[0].index == 0 for t in c.choices[0].logprobs.tokens]
    offsets = [t for c in chunks if c.choices[0].index == 0 for t in c.choices[0].logprobs.text_offset]
    assert told == said.tokens and offsets == said.text_offset
    with pytest.raises(openai.BadRequestError, match="max_tokens is 0"):
        client.completions.create(model="demo", prompt="x", max_tokens=0)


def test_the_best_of_several(client: openai.OpenAI) -> None:
    ask: Any = {"model": "demo", "prompt": ["Once upon", "The sun"], "max_tokens": 6, "temperature": 1.5, "seed": 3}
    every = client.completions.create(n=4, logprobs=0, **ask)
    best = client.completions.create(n=2, best_of=4, **ask)
    assert best.usage.completion_tokens == every.usage.completion_tokens and best.choices[0].logprobs is None
    for place in range(2):
        made = every.choices[4 * place : 4 * place + 4]
        made.sort(key=lambda c: -sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs))
        assert [c.text for c in best.choices[2 * place : 2 * place + 2]] == [c.text for c in made[:2]]
    for wrong in ({"n": 3, "best_of": 2}, {"best_of": 9}, {"best_of": 2, "stream": True}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**ask, **wrong)
        assert caught.value.param in ("best_of", "prompt")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_cancelled_is_no_answer(address: str, llm: LLM, path: str, stream: bool) -> None:
    body: Any = {"model": "demo", "stream": stream, "max_tokens": 2000, "ignore_eos": True}
    body |= {"prompt": "Once"} if path == "/v1/completions" else {"messages": QUESTION}
    assert idle(llm, 20), "requests of earlier tests are over"
    with llm.stream("x") as probe:
        last = probe.request_id
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(httpx.post, address + path, json=body, timeout=60)
        while not got.done():  # ids count up; one that is not there yet is ignored
            llm.cancel(last + 1)
            time.sleep(0.02)
        answer = got.result()
    assert "the answer was cancelled" in answer.text
    assert answer.status_code == 200 if stream else answer.status_code == 503


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
    ({"reasoning_effort": "huge"}, 400, "reasoning_effort"),
    ({"thinking_budget": -1}, 400, "thinking_budget"),
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
