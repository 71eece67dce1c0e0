"""What programs do with the clients of OpenAI and Anthropic beyond a plain request."""
from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel, ConfigDict
from served import idle

from blackwell_infer import LLM

QUESTION: Any = [{"role": "user", "content": "What is 12 times 12?"}]
WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
LONG: Any = {"ignore_eos": True}


class Step(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["product", "sum"]
    exact: bool


class Result(BaseModel):
    """Nested, with a list and a choice, as programs have them."""

    model_config = ConfigDict(extra="forbid")
    answer: Literal[1, 144]
    first: Step
    unit: Literal["days", "weeks"] | None


class GetWeather(BaseModel):
    """Weather of a city"""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome"]


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address + "/v1", api_key="any", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
def claude(address: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=address, api_key="any", max_retries=0, timeout=60) as made:
        yield made


@pytest.mark.parametrize("budget", [0, 3])
def test_a_class_is_parsed_out_of_a_completion(client: openai.OpenAI, budget: int) -> None:
    ask: Any = {"model": "demo", "messages": QUESTION, "temperature": 0, "max_tokens": 120,
                "extra_body": {"thinking_budget": budget}}
    got = client.chat.completions.parse(**ask, response_format=Result)
    assert isinstance(got.choices[0].message.parsed, Result)
    tool = openai.pydantic_function_tool(GetWeather)
    called = client.chat.completions.parse(**ask | {"messages": WEATHER}, tools=[tool], tool_choice="required",
                                           response_format=Result)
    assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, GetWeather)
    either = client.chat.completions.parse(**ask, tools=[tool], response_format=Result).choices[0].message
    assert isinstance(either.parsed, Result) or isinstance(either.tool_calls[0].function.parsed_arguments, GetWeather)
    with client.chat.completions.stream(**ask, response_format=Result) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.parsed == got.choices[0].message.parsed
    assert kinds >= {"content.delta", "content.done"}


def test_a_class_is_parsed_out_of_a_response(client: openai.OpenAI) -> None:
    ask: Any = {"model": "demo", "input": QUESTION, "temperature": 0, "max_output_tokens": 120}
    assert isinstance(client.responses.parse(**ask, text_format=Result).output_parsed, Result)
    tool: Any = openai.pydantic_function_tool(GetWeather)["function"] | {"type": "function"}
    got = client.responses.parse(**ask | {"input": WEATHER}, tools=[tool], tool_choice="required")
    assert got.output[0].type == "function_call" and set(got.output[0].parsed_arguments) == {"city"}


def test_a_class_is_parsed_out_of_a_message(claude: anthropic.Anthropic) -> None:
    got = claude.messages.parse(model="demo", max_tokens=120, messages=QUESTION, output_format=Result,
                                extra_body={"temperature": 0})
    assert isinstance(got.parsed_output, Result)


@pytest.mark.parametrize("api", ["chat", "completions", "responses", "messages"])
def test_who_does_not_wait_is_cancelled(client: openai.OpenAI, claude: anthropic.Anthropic, llm: LLM, api: str) -> None:
    hasty, hasty_claude = client.with_options(timeout=0.05), claude.with_options(timeout=0.05)
    story = "Tell me a long story about a bear."
    calls: dict[str, Any] = {
        "chat": lambda: hasty.chat.completions.create(model="demo", messages=QUESTION, extra_body=LONG),
        "completions": lambda: hasty.completions.create(model="demo", prompt="One", max_tokens=3000, extra_body=LONG),
        "responses": lambda: hasty.responses.create(model="demo", input=story),
        "messages": lambda: hasty_claude.messages.create(model="demo", max_tokens=3000, messages=[
            {"role": "user", "content": story}])}
    with pytest.raises((openai.APITimeoutError, anthropic.APITimeoutError)):
        calls[api]()
    assert idle(llm, 5)


def test_asynchronous_streams_at_the_same_time(address: str) -> None:
    async def talk() -> list[str]:
        async with (openai.AsyncOpenAI(base_url=address + "/v1", api_key="any", max_retries=0) as one,
                    anthropic.AsyncAnthropic(base_url=address, api_key="any", max_retries=0) as other):
            async def chat() -> str:
                async with one.chat.completions.stream(model="demo", messages=QUESTION, temperature=0) as stream:
                    return "".join([event.delta async for event in stream if event.type == "content.delta"])

            async def respond() -> str:
                async with one.responses.stream(model="demo", input=QUESTION, temperature=0) as stream:
                    return "".join([event.delta async for event in stream
                                    if event.type == "response.output_text.delta"])

            async def write() -> str:
                async with other.messages.stream(model="demo", max_tokens=100, messages=QUESTION,
                                                 extra_body={"temperature": 0}) as stream:
                    return "".join([text async for text in stream.text_stream])

            return list(await asyncio.gather(chat(), respond(), write()))

    answers = asyncio.run(talk())
    assert "144" in answers[0] and len(set(answers)) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_loop_of_tools(claude: anthropic.Anthropic, streaming: bool) -> None:
    asked: list[str] = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Weather of a city"""
        asked.append(city)
        return "18 degrees"

    runner: Any = claude.beta.messages.tool_runner(
        model="demo", max_tokens=80, messages=WEATHER, tools=[get_weather], stream=streaming, max_iterations=3,
        extra_body={"temperature": 0})
    messages = [turn.get_final_message() if streaming else turn for turn in runner]
    assert [message.stop_reason for message in messages] == ["tool_use", "end_turn"] and asked == ["Paris"]
    assert messages[-1].content[-1].type == "text" and messages[-1].content[-1].text
