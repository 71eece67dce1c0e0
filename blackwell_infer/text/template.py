"""Chat templates: the Jinja program of a model that turns messages into a prompt."""
from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from blackwell_infer.errors import TemplateError
from blackwell_infer.text.messages import arguments_of
from blackwell_infer.types import Message, ToolCall

if TYPE_CHECKING:
    from jinja2 import Template

REASONING_MARKERS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel>thought", "<channel|>"),
)
"""Opening and closing markers of reasoning, over the families that have them."""

_END = "\ue000end of the message to continue\ue000"
"""Marks where the last message ends in the rendered text; private-use characters occur in no real message."""


class ChatTemplate:
    """A template with the texts of the model's begin and end tokens. It is compiled at the first rendering, so a
    faulty template leaves plain completion usable. Every failure is a TemplateError that gives the template's line."""

    def __init__(self, source: str, bos: str, eos: str, name: str = "chat template") -> None:
        self.source = source
        self.bos = bos
        self.eos = eos
        self.name = name

    def render(
        self, messages: Sequence[Message | Mapping[str, Any]], *, add_generation_prompt: bool = True,
        continue_final: bool = False, tools: Sequence[Mapping[str, Any]] | None = None, **variables: Any,
    ) -> str:
        """The prompt for these messages.

        `continue_final` leaves the last message open, so that the model continues it (no generation prompt then).
        `tools` are function declarations as in the OpenAI API; `variables` reach the template as they are
        (`enable_thinking`, `reasoning_effort`, ...).
        """
        from blackwell_infer.text.sandbox import ALLOWANCE, Allowance

        turns = [as_mapping(message) for message in messages]
        if continue_final:
            turns = mark_end(turns)
        names = {
            "messages": turns, "tools": list(tools) if tools else None, "documents": None,
            "add_generation_prompt": add_generation_prompt and not continue_final,
            "bos_token": self.bos, "eos_token": self.eos, **variables, ALLOWANCE: Allowance(),
        }
        compiled = self._compiled
        try:
            text = compiled.render(names)
        except Exception as error:  # a template is a program: it can raise anything
            self._fail(error)
        if not continue_final:
            return text
        before, found, _ = text.rpartition(_END)
        if not found:
            raise TemplateError(f"the {self.name} drops the last message, so it cannot be continued; send it as a turn")
        return before

    @functools.cached_property
    def _compiled(self) -> Template:
        from blackwell_infer.text.sandbox import TemplateEnvironment

        try:
            return TemplateEnvironment().from_string(self.source)
        except Exception as error:  # besides TemplateSyntaxError: too deep for the parser or for the compiler
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        import jinja2

        if isinstance(error, jinja2.TemplateSyntaxError):
            what, line = f"has a syntax error: {error.message}", error.lineno
        else:
            line = template_line(error.__traceback__)
            if type(error) is jinja2.TemplateError:
                what = f"refuses these messages: {error.message}"
            elif isinstance(error, RecursionError):
                what = "recurses too deeply"
            elif isinstance(error, MemoryError):
                what = "takes too much memory"
            else:
                what = f"failed: {type(error).__name__}: {error}"
        place = f" (line {line})" if line else ""
        raise TemplateError(f"the {self.name} {what}{place}") from error


def template_line(trace: TracebackType | None) -> int:
    """The innermost template line of a traceback that Jinja has rewritten, or 0."""
    line = 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def as_mapping(message: Message | Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates read it: fields that are not set are absent, `role` and `content` always present.

    Calls are {"id", "type", "function": {"name", "arguments"}} with arguments as an object, which is what templates
    want; arguments that are none, of an answer that broke off, stay text.
    """
    if not isinstance(message, Message):
        return dict(message)
    turn = {"role": message.role, "content": message.content, **msgspec.to_builtins(message)}
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    return turn


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = arguments_of(call.arguments)
    function = {"name": call.name, "arguments": call.arguments if arguments is None else arguments}
    return {"id": call.id, "type": "function", "function": function}


def mark_end(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns with the end of the last one's text marked."""
    last: dict[str, Any] = turns[-1] if turns else {}
    content = last.get("content")
    if last.get("role") != "assistant" or not isinstance(content, str):
        raise TemplateError("only a last message from the assistant, with text, can be continued; add one or ask anew")
    return [*turns[:-1], {**last, "content": content + _END}]


def reasoning_markers(source: str) -> tuple[str, str] | None:
    """The markers of reasoning that a template knows, or None."""
    return next((pair for pair in REASONING_MARKERS if any(marker in source for marker in pair)), None)


def closing_text(source: str, marker: str) -> str:
    """The closing marker with the line breaks that a template puts around it, one at most before and two behind."""
    found = re.findall(rf"((?:\\n|\n)*){re.escape(marker)}((?:\\n|\n)*)", source)
    before, after = max((("\n" in one[0] or "\\n" in one[0], len(one[1].replace("\\n", "\n"))) for one in found),
                        key=lambda one: (one[1], one[0]), default=(False, 0))
    return "\n" * before + marker + "\n" * min(after, 2)


def starts_inside(prompt: str, markers: tuple[str, str] | None) -> bool:
    """Whether a rendered prompt ends with the opening marker, so that the answer begins as reasoning."""
    return markers is not None and prompt.rstrip().endswith(markers[0])


def starts_behind(prompt: str, markers: tuple[str, str] | None) -> bool:
    """Whether a rendered prompt ends with the closing marker, so that the answer is to begin without reasoning."""
    return markers is not None and prompt.rstrip().endswith(markers[1])
