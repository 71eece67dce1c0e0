"""OpenAI's Responses API: from the body of a request to an `Ask`."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from blackwell_infer.errors import RequestError
from blackwell_infer.serve.conversation import Ask, Effort, thinking_of
from blackwell_infer.serve.errors import invalid
from blackwell_infer.text.messages import arguments_of
from blackwell_infer.text.tools import Named, ToolChoice
from blackwell_infer.types import Grammar, Message, Sampling, Tool, ToolCall

Item = dict[str, Any]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
ToolName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_.-]{1,128}$")]
Id = Annotated[str, Meta(min_length=1, max_length=256)]
Found = TypeVar("Found")
LOGPROBS = "message.output_text.logprobs"
"""What `include` holds where log-probabilities are wanted"""


class InputText(Struct, tag_field="type", tag="input_text"):
    text: str


class OutputText(Struct, tag_field="type", tag="output_text"):
    text: str


class SummaryText(Struct, tag_field="type", tag="summary_text"):
    text: str


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    text: str


class InputImage(Struct, tag_field="type", tag="input_image"):
    """Known so that it can be refused by name."""


class InputFile(Struct, tag_field="type", tag="input_file"):
    """Known so that it can be refused by name."""


Part = InputText | OutputText | InputImage | InputFile


class MessageItem(Struct):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]


class CallItem(Struct):
    call_id: Id
    name: Name
    arguments: str


class OutputItem(Struct):
    call_id: Id
    output: str | list[Part]


class ReasoningItem(Struct):
    summary: list[SummaryText] | None = None
    content: list[ReasoningText] | None = None


class ToolSpec(Struct):
    type: str
    name: ToolName | None = None
    parameters: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class FunctionChoice(Struct):
    type: str
    name: str | None = None


class TextFormat(Struct, tag_field="type", tag="text"):
    pass


class ObjectFormat(Struct, tag_field="type", tag="json_object"):
    pass


class SchemaFormat(Struct, tag_field="type", tag="json_schema"):
    name: str
    schema: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class GrammarFormat(Struct, tag_field="type", tag="grammar"):
    syntax: Literal["regex", "lark", "gbnf"]
    definition: str


class TextSpec(Struct):
    format: TextFormat | ObjectFormat | SchemaFormat | GrammarFormat | None = None


class ReasoningSpec(Struct):
    effort: Effort | None = None


class Body(Struct):
    """A request for a response. Fields that are not named here change nothing."""

    model: str
    input: str | list[Item]
    instructions: str | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = True
    text: TextSpec | None = None
    reasoning: ReasoningSpec | None = None
    thinking_budget: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    store: bool | None = True
    stream: bool | None = False
    background: bool | None = False
    previous_response_id: str | None = None
    conversation: str | Item | None = None
    prompt: Item | None = None
    metadata: dict[str, str] | None = None

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())


def read_body(value: dict[str, Any]) -> Body:
    """The body; HttpError or RequestError names the field that is wrong, or cannot be honoured."""
    try:
        found = msgspec.convert(value, Body)
    except msgspec.ValidationError as error:
        raise invalid(error) from None
    refused: dict[str, Any] = {
        "background": found.background, "conversation": found.conversation, "prompt": found.prompt,
        "include": [name for name in found.include or () if name not in ("reasoning.encrypted_content", LOGPROBS)],
    }
    for name, value in refused.items():
        if value:
            raise RequestError(f"{name} {value!r} is not supported here; leave it out")
    if found.top_logprobs and not found.wants_logprobs:
        raise RequestError(f"top_logprobs needs include to hold {LOGPROBS!r}")
    return found


def items_of(body: Body) -> list[Item]:
    """The input as items, texts included."""
    return [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input


def said(output: Sequence[Item]) -> list[Item]:
    """What a conversation goes on from: the items of an answer without a call that was cut off in its arguments."""
    return [item for item in output if item["type"] != "function_call" or item["status"] == "completed"
            or (item["arguments"] and arguments_of(item["arguments"]) is not None)]


def ask_of(body: Body, before: Sequence[Item], defaults: Sampling) -> Ask:
    """The question that a request asks after the items `before`; what it leaves out comes from `defaults`."""
    given = {"temperature": body.temperature, "top_p": body.top_p, "max_tokens": body.max_output_tokens,
             "thinking_budget": body.thinking_budget}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    tools = tuple(_tool(spec, i) for i, spec in enumerate(body.tools or ()))
    return Ask(
        messages=_messages(body.instructions, [*before, *items_of(body)]), tools=tools,
        choice=_choice(body.tool_choice, tools), parallel=body.parallel_tool_calls is not False,
        sampling=msgspec.structs.replace(
            defaults, grammar=_grammar(body.text), n=1, **changes,
            logprobs=(body.top_logprobs or 0) if body.wants_logprobs else defaults.logprobs),
        thinking=thinking_of(None, body.reasoning.effort if body.reasoning else None, body.thinking_budget),
    )


def _grammar(spec: TextSpec | None) -> Grammar | None:
    format = spec.format if spec else None
    if isinstance(format, SchemaFormat):
        return Grammar("json_schema", msgspec.json.encode(format.schema).decode())
    if isinstance(format, GrammarFormat):
        return Grammar(format.syntax, format.definition)
    return Grammar("json_object") if isinstance(format, ObjectFormat) else None


def _tool(spec: ToolSpec, index: int) -> Tool:
    if spec.type != "function":
        raise RequestError(f"tools[{index}].type {spec.type!r} is not supported here; give tools of type 'function'")
    if spec.name is None:
        raise RequestError(f"tools[{index}].name is missing")
    return Tool(
        name=spec.name, description=spec.description or "", parameters=spec.parameters or EMPTY,
        strict=spec.strict is not False,
    )


EMPTY = {"type": "object", "properties": {}}


def _choice(choice: str | FunctionChoice | None, tools: tuple[Tool, ...]) -> ToolChoice:
    names = [tool.name for tool in tools]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise RequestError(f"tools: two are named {twice!r}; names must be unique")
    if isinstance(choice, FunctionChoice):
        if choice.type != "function":
            raise RequestError(f"tool_choice.type {choice.type!r} is not supported here; name a function")
        if choice.name is None or choice.name not in names:
            raise RequestError(f"tool_choice.name {choice.name!r} is none of the tools: {', '.join(names) or 'none'}")
        return Named(choice.name)
    if choice == "required" and not tools:
        raise RequestError("tool_choice 'required' needs tools")
    return "none" if choice == "none" else "required" if choice == "required" else "auto"


def _messages(instructions: str | None, items: Sequence[Item]) -> tuple[Message, ...]:
    """Items as the template sees them: what the assistant thought, said and called in a row is one message."""
    messages: list[Message] = [Message(role="system", content=instructions)] if instructions else []
    waiting: list[str] = []
    for i, item in enumerate(items):
        place = f"input[{i}]"
        match item.get("type", "message"):
            case "message":
                message = _message(_read(item, MessageItem, place), place)
            case "reasoning":
                message = Message(role="assistant", reasoning_content=_thought(_read(item, ReasoningItem, place)))
            case "function_call":
                message = Message(role="assistant", tool_calls=(_call(_read(item, CallItem, place), place),))
                waiting.append(message.tool_calls[0].id)
            case "function_call_output":
                answer = _read(item, OutputItem, place)
                if answer.call_id not in waiting:
                    raise RequestError(f"{place}.call_id {answer.call_id!r} is of no function_call before it")
                waiting.remove(answer.call_id)
                message = Message(role="tool", content=_text(answer.output, place), tool_call_id=answer.call_id)
            case other:
                raise RequestError(
                    f"{place}.type {other!r} is not supported; known are message, reasoning, function_call and"
                    " function_call_output"
                )
        if waiting and message.role not in ("assistant", "tool"):
            break
        _add(messages, message)
    if waiting:
        raise RequestError(f"the input has no function_call_output for the function_call {waiting[0]!r}")
    if not any(message.role != "system" for message in messages):
        raise RequestError("input is empty; give at least one message")
    return tuple(messages)


def _add(messages: list[Message], message: Message) -> None:
    """Join what belongs in one turn: leading system messages, and neighbours of the assistant."""
    last = messages[-1] if messages else None
    if last is not None and last.role == message.role == "system":
        messages[-1] = Message(role="system", content=f"{last.content}\n\n{message.content}")
    elif last is not None and last.role == message.role == "assistant":
        thought = (last.reasoning_content or "") + (message.reasoning_content or "")
        messages[-1] = Message(
            role="assistant", content=last.content + message.content, reasoning_content=thought or None,
            tool_calls=last.tool_calls + message.tool_calls,
        )
    else:
        messages.append(message)


def _read(item: Item, kind: type[Found], place: str) -> Found:
    try:
        return msgspec.convert(item, type=kind)
    except msgspec.ValidationError as error:
        raise RequestError(f"{place}: {error}") from None


def _message(item: MessageItem, place: str) -> Message:
    return Message(role="system" if item.role == "developer" else item.role, content=_text(item.content, place))


def _text(content: str | list[Part], place: str) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if isinstance(part, InputImage | InputFile):
            raise RequestError(f"{place}: this server reads text only, not {part.__struct_config__.tag}")
    return "".join(part.text for part in content if isinstance(part, InputText | OutputText))


def _thought(item: ReasoningItem) -> str:
    return "".join(part.text for part in item.content or item.summary or ())


def _call(item: CallItem, place: str) -> ToolCall:
    if arguments_of(item.arguments) is None:
        raise RequestError(f"{place}.arguments must be a JSON object, as text")
    return ToolCall(id=item.call_id, name=item.name, arguments=item.arguments or "{}")
