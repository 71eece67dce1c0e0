"""Anthropic's Messages API: from the body of a request to an `Ask`."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from blackwell_infer.errors import RequestError
from blackwell_infer.serve.conversation import Ask, Effort, Thinking
from blackwell_infer.serve.errors import HttpError, invalid
from blackwell_infer.text.tools import Named, ToolChoice
from blackwell_infer.types import Grammar, Message, Sampling, Tool, ToolCall

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
ToolName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_.-]{1,128}$")]
Id = Annotated[str, Meta(min_length=1, max_length=256)]


class TextBlock(Struct, tag_field="type", tag="text"):
    text: str


class ImageBlock(Struct, tag_field="type", tag="image"):
    """Known so that it can be refused by name."""


class DocumentBlock(Struct, tag_field="type", tag="document"):
    """Known so that it can be refused by name."""


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    thinking: str


class RedactedBlock(Struct, tag_field="type", tag="redacted_thinking"):
    """Reasoning that another server has hidden; it holds nothing that this model could read."""


class ToolUseBlock(Struct, tag_field="type", tag="tool_use"):
    id: Id
    name: Name
    input: dict[str, Any]


class ToolResultBlock(Struct, tag_field="type", tag="tool_result"):
    tool_use_id: Id
    content: str | list[TextBlock | ImageBlock | DocumentBlock] = ""
    is_error: bool | None = False


Block = (TextBlock | ImageBlock | DocumentBlock | ThinkingBlock | RedactedBlock | ToolUseBlock | ToolResultBlock)


class Turn(Struct):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class ToolSpec(Struct):
    name: ToolName
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None


class Choice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = False


class ThinkingSpec(Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None


class Format(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputSpec(Struct):
    effort: Effort | None = None
    format: Format | None = None


class CountBody(Struct):
    """What counting reads. Fields that are not named here (metadata, cache_control, ...) change nothing."""

    model: str
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Choice | None = None
    thinking: ThinkingSpec | None = None
    output_config: OutputSpec | None = None
    output_format: Format | None = None
    thread: dict[str, Any] | None = None


class Body(CountBody, kw_only=True):
    """A request for a message."""

    max_tokens: Count
    stop_sequences: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=16)] | None = None
    stream: bool | None = False
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


Read = TypeVar("Read", bound=CountBody)


def read_body(value: dict[str, Any], kind: type[Read]) -> Read:
    """The body as a struct of `kind`; HttpError names the field that is wrong."""
    try:
        found = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise invalid(error) from None
    if found.thread is not None:  # clients then send the whole conversation
        raise HttpError(400, "conversations are not kept here; leave out thread and send all messages", "thread",
                        details={"error_code": "thread_unsupported_request", "unsupported": ["thread"]})
    return found


def ask_of(body: Body, defaults: Sampling) -> Ask:
    """The question that a request asks; what it leaves out comes from the model's `defaults`."""
    budget = body.thinking.budget_tokens if body.thinking and body.thinking.type == "enabled" else None
    if budget is not None and budget >= body.max_tokens:
        raise RequestError("thinking.budget_tokens must be less than max_tokens, which counts the thinking too")
    given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k, "thinking_budget": budget}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    format = body.output_config.format if body.output_config else None
    if format is not None and body.output_format is not None:
        raise RequestError("output_format and output_config.format are the same; give one of them")
    format = format or body.output_format
    if format is not None:
        changes["grammar"] = Grammar("json_schema", msgspec.json.encode(format.schema).decode())
    sampling = msgspec.structs.replace(
        defaults, max_tokens=body.max_tokens, stop=tuple(body.stop_sequences or ()), n=1, **changes,
    )
    return _ask(body, sampling)


def counted(body: CountBody) -> Ask:
    """The question whose prompt is to be counted."""
    return _ask(body, Sampling(max_tokens=1))


def _ask(body: CountBody, sampling: Sampling) -> Ask:
    thinking = _thinking(body)
    tools = tuple(_tool(spec, i) for i, spec in enumerate(body.tools or ()))
    choice, parallel = _choice(body.tool_choice, tools)
    messages = _messages(body)
    prefill = messages[-1].role == "assistant"
    if prefill and thinking.enabled:
        raise RequestError("with thinking, the last message must come from the user: the answer begins with thoughts")
    return Ask(
        messages=messages, tools=tools, choice=choice, parallel=parallel, sampling=sampling, thinking=thinking,
        prefill=prefill,
    )


def _thinking(body: CountBody) -> Thinking:
    """Thinking is off unless it is asked for, as this API has it."""
    spec, effort = body.thinking, body.output_config.effort if body.output_config else None
    if spec is None or spec.type == "disabled":
        return Thinking(enabled=False)
    if spec.type == "enabled" and spec.budget_tokens is None:
        raise RequestError('thinking needs budget_tokens, or the type "adaptive"')
    return Thinking(enabled=True, effort=effort)


def _tool(spec: ToolSpec, index: int) -> Tool:
    if spec.type not in (None, "custom"):
        raise RequestError(f"tools[{index}].type {spec.type!r} is not supported; give tools with input_schema")
    if spec.input_schema is None:
        raise RequestError(f"tools[{index}].input_schema is missing: the JSON schema of the arguments, an object")
    return Tool(
        name=spec.name, description=spec.description or "", parameters=spec.input_schema,
        strict=bool(spec.strict),
    )


def _choice(choice: Choice | None, tools: tuple[Tool, ...]) -> tuple[ToolChoice, bool]:
    names = [tool.name for tool in tools]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise RequestError(f"tools: two are named {twice!r}; names must be unique")
    if choice is None:
        return "auto", True
    parallel = not choice.disable_parallel_tool_use
    if choice.type == "tool":
        if choice.name is None or choice.name not in names:
            raise RequestError(f"tool_choice.name {choice.name!r} is none of the tools: {', '.join(names) or 'none'}")
        return Named(choice.name), parallel
    if choice.type == "any":
        if not tools:
            raise RequestError('tool_choice "any" needs tools')
        return "required", parallel
    return choice.type, parallel


def _messages(body: CountBody) -> tuple[Message, ...]:
    """Turns as the template sees them. Neighbours of one role are one turn; each result is a message of its own."""
    messages: list[Message] = []
    if body.system:
        system = body.system if isinstance(body.system, str) else "\n\n".join(block.text for block in body.system)
        messages.append(Message(role="system", content=system))
    open_calls: tuple[str, ...] = ()
    for role, place, blocks in _turns(body.messages):
        if role == "assistant":
            _all_answered(open_calls, place)
            messages.append(_assistant(blocks, place))
            open_calls = tuple(call.id for call in messages[-1].tool_calls)
        else:
            messages += _user(blocks, place, open_calls)
            answered = {block.tool_use_id for block in blocks if isinstance(block, ToolResultBlock)}
            _all_answered(tuple(id for id in open_calls if id not in answered), place)
            open_calls = ()
    _all_answered(open_calls, "messages")
    return tuple(messages)


def _all_answered(ids: Sequence[str], place: str) -> None:
    if ids:
        raise RequestError(f"{place}: tool_use {ids[0]!r} has no tool_result in the turn after it")


def _turns(turns: Sequence[Turn]) -> list[tuple[str, str, list[Block]]]:
    """Role, place and blocks of each turn, neighbours of one role joined."""
    joined: list[tuple[str, str, list[Block]]] = []
    for i, turn in enumerate(turns):
        content: list[Block] = [TextBlock(turn.content)] if isinstance(turn.content, str) else list(turn.content)
        if joined and joined[-1][0] == turn.role:
            joined[-1][2].extend(content)
        else:
            joined.append((turn.role, f"messages[{i}]", content))
    return joined


def _assistant(blocks: Sequence[Block], place: str) -> Message:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            arguments = msgspec.json.encode(block.input).decode()
            calls.append(ToolCall(id=block.id, name=block.name, arguments=arguments))
        elif not isinstance(block, RedactedBlock):
            raise RequestError(f"{place}: an assistant says text, thinking and tool_use, not {_kind(block)}")
    return Message(
        role="assistant", content="".join(texts), reasoning_content="".join(thoughts) or None, tool_calls=tuple(calls),
    )


def _user(blocks: Sequence[Block], place: str, open_calls: Sequence[str]) -> list[Message]:
    """Results first, in their order, then what the user says, as the API demands it of its callers."""
    texts: list[str] = []
    results: list[Message] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ToolResultBlock):
            if block.tool_use_id not in open_calls:
                raise RequestError(f"{place}: tool_result {block.tool_use_id!r} answers no call of the turn before")
            text = "Error: " * bool(block.is_error) + _result(block.content, place)
            results.append(Message(role="tool", content=text, tool_call_id=block.tool_use_id))
        else:
            raise RequestError(f"{place}: a turn of the user holds text and tool_result, not {_kind(block)}")
    return [*results, Message(role="user", content="\n\n".join(texts))] if texts or not results else results


def _result(content: str | list[TextBlock | ImageBlock | DocumentBlock], place: str) -> str:
    if isinstance(content, str):
        return content
    for block in content:
        if not isinstance(block, TextBlock):
            raise RequestError(f"{place}: a tool_result holds text, not {_kind(block)}")
    return "\n".join(block.text for block in content if isinstance(block, TextBlock))


def _kind(block: Block) -> str:
    tag = str(block.__struct_config__.tag)
    return f"{tag}: this server reads text only" if tag in ("image", "document") else tag
