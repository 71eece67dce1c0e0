"""Qwen3-Coder, Qwen3.5 and Nemotron 3: parameters one by one, texts without quotes.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blackwell_infer.errors import RequestError
from blackwell_infer.text.grammar_terms import literal, without
from blackwell_infer.text.stream import overlap
from blackwell_infer.text.tools.arguments import CLOSED, Style, find, plain, read
from blackwell_infer.text.tools.calls import ToolChoice
from blackwell_infer.text.tools.reader import LONGEST_NAME, Reader, Steps, quoted
from blackwell_infer.text.tools.rules import arguments, frame, json_rule
from blackwell_infer.types import Grammar, Tool

BEGIN, END = "<tool_call>", "</tool_call>"
PARAMETER_END = "</parameter>"
VALUE_END = "\n" + PARAMETER_END
MARKERS = (BEGIN, END)


def claims(template_source: str) -> bool:
    return "<function=" in template_source and "<parameter=" in template_source


def grammar(
    tools: Sequence[Tool], choice: ToolChoice, parallel: bool, reasoning: tuple[str, str] | None, inside: bool,
    answer: Grammar | None = None,
) -> Grammar | None:
    return frame(tools, choice, parallel, reasoning, inside, answer, opener=BEGIN, call=call, between="\n" + BEGIN)


def call(name: str, tool: Tool) -> list[str]:
    """The rules of a call behind its marker. Parameters come in the order of the schema."""
    schema = arguments(tool)
    for keyword in schema:
        if keyword not in CLOSED and tool.strict:
            raise RequestError(f"tools.{tool.name}.parameters.{keyword} is not supported: this model writes arguments "
                               "one by one; say it of the properties, or make the tool not strict")
    properties: dict[str, Any] = dict(tool.parameters.get("properties", {}))
    required = tool.parameters.get("required", ())
    properties |= {key: {} for key in required if key not in properties}
    rules, parts = [], [literal(f"\n<function={tool.name}>\n")]
    for i, (key, value) in enumerate(properties.items()):
        part = f"{name}_{i}"
        parts.append(f"({literal(f'<parameter={key}>') } {part})" + ("" if key in required else "?"))
        rules += parameter(part, value, tool, "properties" in schema)
    return [f"{name}: {' '.join(parts)} {literal('</function>' + chr(10) + END)}", *rules]


def parameter(name: str, schema: Any, tool: Tool, enforced: bool) -> list[str]:
    """The rules of a parameter's value, with the lines around it."""
    style, text = plain(schema, tool.parameters) if enforced else ("json", {})
    end = literal(VALUE_END + "\n")
    if style == "json":
        shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
        own = {**shared, **schema} if isinstance(schema, dict) and enforced else {}
        return [f'{name}: "\\n" {name}_json {end}', f"{name}_json: {json_rule(own)}"]
    terminal = name.upper()
    values = text.get("enum", [text["const"]] if "const" in text else None)
    if values is not None:
        allowed = [v for v in values if text.get("minLength", 0) <= len(v) <= text.get("maxLength", len(v))]
        options = " | ".join(literal(v) for v in allowed if PARAMETER_END not in v)
        if not options:
            raise RequestError(f"tools.{tool.name}.parameters: no value of a parameter's enum can be written")
        options += ' | "null"' if style == "text or null" else ""
        return [f'{name}: "\\n" {terminal} {end}', f"{terminal}: {options}"]
    least, most = text.get("minLength", 0), text.get("maxLength", "")
    sized = f" & /(?s:.{{{least},{most}}})/" if least or most != "" else ""
    allowed_text = f"({without(PARAMETER_END)}{sized})"
    if style == "text or null" and sized:
        allowed_text = f'({allowed_text} | "null")'
    return [f'{name}: "\\n" {terminal}', f"{terminal}: {allowed_text} {end}"]


class Parser(Reader):
    """See `calls.Parser`. Texts are passed on as they come, other values when they are whole."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__()
        self._tools = tools

    def run(self) -> Steps:
        while (yield from self.text((BEGIN,))) is not None:
            back = self.at
            yield from self.spaces()
            name = (yield from self.until(">", LONGEST_NAME)) if (yield from self.literal("<function=")) else None
            if not name or "<" in name or "\n" in name:
                self.at = back
                self.say(BEGIN)
                continue
            self.start(name)
            yield from self._parameters(find(self._tools, name))

    def _parameters(self, tool: Tool | None) -> Steps:
        written = 0
        while True:
            yield from self.spaces()
            key = (yield from self.until(">", LONGEST_NAME)) if (yield from self.literal("<parameter=")) else None
            if key is None:
                break
            self.argue(("{" if not written else ", ") + quoted(key) + ": ")
            written += 1
            style: Style = "json"
            if tool is not None:
                properties = tool.parameters.get("properties", {})
                style = plain(properties.get(key, {}), tool.parameters)[0] if isinstance(properties, dict) else "json"
            yield from self.literal("\n")
            yield from self._value(style)
        self.argue("}" if written else "{}")
        yield from self.skip(END)

    def _value(self, style: Style) -> Steps:
        """A value and the mark behind it, which stands on a line of its own or right behind the value."""
        whole = ""
        if style == "text":
            self.argue('"')
        while True:
            self.drop()
            end = self.held.find(PARAMETER_END)
            if end < 0 and not self.ended:
                keep = max(overlap(self.held, VALUE_END), overlap(self.held, PARAMETER_END))
                cut = len(self.held) - keep
            else:
                cut = len(self.held) if end < 0 else end - (self.held[:end].endswith("\n"))
            part = self.held[:cut]
            if style == "text":
                self.argue(quoted(part)[1:-1])
            else:
                whole += part
            self.at = cut
            if end >= 0 or self.ended:
                break
            yield
        self.at = len(self.held) if end < 0 else end + len(PARAMETER_END)
        self.argue('"' if style == "text" else read(whole, style))
