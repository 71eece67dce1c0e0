"""Chat templates: real ones render as their models expect, hostile ones end in a typed error."""
from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackwell_infer.errors import TemplateError
from blackwell_infer.text.template import ChatTemplate, reasoning_markers, starts_inside
from blackwell_infer.types import Message

FOLDER = Path(__file__).parents[2] / "../shared/data/tokenizers/chat-templates"
TEMPLATES = sorted(FOLDER.glob("*.jinja"))
WITHOUT_TOOLS = ("gemma", "Phi", "SmolLM3", "DeepSeek", "R1-Distill")
"""Templates that know no tools, or none under the name `tools`."""
TURNS = (
    Message(role="system", content="Be terse."), Message(role="user", content="First?"),
    Message(role="assistant", content="One."), Message(role="user", content='Is 1 < 2 & "so"?'),
)
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather", "description": "The weather at a place, e.g. in Zürich <today>",
            "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "a town"}},
                           "required": ["place"]},
        },
    },
)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>")


def render(source: str, *messages: Message, **options: Any) -> str:
    return template(source).render(messages, **options)


def real(name: str) -> ChatTemplate:
    files = [file for file in TEMPLATES if name in file.name]
    if not files:
        pytest.skip("shared data is not here")
    return template(files[0].read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_real_templates(file: Path, tools: Any) -> None:
    chat = template(file.read_text(encoding="utf-8"))
    system = "System role not supported" not in chat.source
    turns = TURNS if system else TURNS[1:]
    text = chat.render(turns, tools=tools)
    places = [text.rindex(turn.content) for turn in turns]
    assert places == sorted(places) or "Mistral" in file.name  # Mistral puts the system text into the last question
    if tools and not any(name in file.name for name in WITHOUT_TOOLS):
        assert "weather" in text and "Zürich" in text
    assert chat.render(turns, tools=tools, add_generation_prompt=False) != text or "Mistral" in file.name
    if not system:
        with pytest.raises(TemplateError, match="System role not supported"):
            chat.render(TURNS)


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_real_templates_continue_an_answer(file: Path) -> None:
    chat = template(file.read_text(encoding="utf-8"))
    turns = [TURNS[1], Message(role="assistant", content="The answer begins ")]
    assert chat.render(turns, continue_final=True).endswith("The answer begins ")


def test_llama_prompt() -> None:
    assert real("meta-llama-Llama-3.1").render(TURNS[1:2], date_string="1 Jan 2025") == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 1 Jan 2025\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nFirst?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_qwen3_prompt_and_thinking_switch() -> None:
    chat = real("Qwen3-0.6B")
    head = "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nFirst?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.render(TURNS[:2]) == head
    assert chat.render(TURNS[:2], enable_thinking=False) == head + "<think>\n\n</think>\n\n"
    answered = Message(role="assistant", content="One.", reasoning_content="Counting.")
    assert "Counting." not in chat.render([*TURNS[:2], answered, TURNS[3]])


@pytest.mark.parametrize(
    ("name", "options", "inside"),
    [
        ("DeepSeek-R1-Distill-Llama", {}, True), ("Qwen3.5", {}, True), ("Qwen3.5", {"enable_thinking": False}, False),
        ("QwQ", {"enable_thinking": True}, True), ("QwQ", {}, False), ("V3.1", {"thinking": True}, True),
        ("V3.1", {}, False), ("Qwen3-0.6B", {}, False),
    ],
)
def test_whether_the_answer_starts_as_reasoning(name: str, options: dict[str, bool], inside: bool) -> None:
    chat = real(name)
    markers = reasoning_markers(chat.source)
    assert markers == ("<think>", "</think>")
    assert starts_inside(chat.render(TURNS, **options), markers) is inside


def test_markers() -> None:
    assert reasoning_markers("{{ x.split('[/THINK]') }}") == ("[THINK]", "[/THINK]")
    assert reasoning_markers("plain") is None and not starts_inside("<think>", None)
    assert not starts_inside("What is <think>?<|im_end|>assistant\n", ("<think>", "</think>"))


def test_message_fields() -> None:
    source = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    text = render(source, Message(role="user"), Message(role="assistant", content="a", reasoning_content="r", name="n"))
    first, second = text.split("}{")
    assert json.loads(first + "}") == {"role": "user", "content": ""}
    assert json.loads("{" + second)["reasoning_content"] == "r"
    mapping = {"role": "tool", "content": None, "tool_calls": [{"id": 1}]}
    assert template("{{ messages[0].tool_calls[0].id }}").render([mapping]) == "1"


def test_the_environment_of_chat_templates() -> None:
    assert render("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"
    assert render("{{ {'b': '<é>', 'a': 1} | tojson }}") == '{"b": "<é>", "a": 1}'
    assert render("{{ ['é'] | tojson(ensure_ascii=true, indent=2) }}") == '[\n  "\\u00e9"\n]'
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{% generation %}x{{ 1 }}{% endgeneration %}y") == "x1y"
    assert re.fullmatch(r"\d{4}", render("{{ strftime_now('%Y') }}"))
    assert render("{{ bos_token ~ eos_token ~ 1 ~ none }}") == "<s></s>1None"
    assert render("{% for t in tools %}x{% endfor %}{{ tools is none }}") == "True"
    loop = "{% for x in [1,2,3] %}{{ loop.previtem }}{{ loop.last }}{{ loop.length }}|{% endfor %}"
    assert render(loop) == "False3|1False3|2True3|"
    assert render("{% for k, v in {'a': 1}.items() recursive %}{{ k }}{{ v }}{% else %}no{% endfor %}") == "a1"
    assert render("{{ ' a '.strip() + '%s %d' % ('b', 3) + 'x{}'.format(1) + '-'.join(['p', 'q']) }}") == "ab 3x1p-q"
    assert render("{{ 'ab' * 2 }}{{ 2 ** 5 }}{{ 'a.b' | replace('.', '!') }}{{ [1, 2] | join }}") == "abab32a!b12"


@pytest.mark.parametrize(
    ("source", "words", "line"),
    [
        ("\n{% if %}", "syntax error", 2),
        ("{% for x in [1] %}\n", "syntax error", 1),
        ("a\n\n{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate", 3),
        ("a\n{{ nothing.field }}", "UndefinedError", 2),
        ("{{ 1 / 0 }}", "ZeroDivisionError", 1),
        ("{{ 'a' + 1 }}", "TypeError", 1),
        ("\n{{ messages.append(1) }}", "SecurityError", 2),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError", 1),
        ("{{ raise_exception.__globals__.x }}", "SecurityError", 1),
        ("{{ ('{0.__class__.__init__.__globals__}').format(bos_token) }}", "SecurityError", 1),
        ("{% include 'x' %}", "loader", 1),
        ("{{ range(1000000000) }}", "Range too big", 1),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "loop steps", 1),
        ("{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}\n{{ f(1) }}", "recurses too deeply", 1),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}", "loop steps", 1),
        ("{{ 'a' * 1000000000000 }}", "more than", 1),
        ("{{ 10 ** 10000000000 }}", "more than", 1),
        ("{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
         "more than", 1),
        ("{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
         "more than", 1),
        ("{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"
         "{% endfor %}", "more than", 1),
        ("{{ '%1000000000d' % 1 }}", "width", 1),
        ("{{ '{:1000000000}'.format(1) }}", "width", 1),
        ("{{ 'x'.center(1000000000) }}", "width", 1),
        ("{{ 'x' | center(1000000000) }}", "width", 1),
        ("{{ [1] | tojson(indent=1000000000) }}", "width", 1),
        ("{% set a = 'a' * 100000 %}{{ a.replace('a', a) }}", "more than", 1),
        ("{% set a = 'a' * 100000 %}{{ a | replace('a', a) }}", "more than", 1),
        ("{% set a = 'a' * 100000 %}{{ ''.join([a] * 100000) }}", "more than", 1),
        ("{% set a = 'a' * 100000 %}{{ ([a] * 100000) | join }}", "more than", 1),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "recurses too deeply", 0),
    ],
)
def test_hostile_templates(source: str, words: str, line: int) -> None:
    start = time.perf_counter()
    with pytest.raises(TemplateError) as caught:
        render(source, *TURNS)
    assert words in str(caught.value)
    assert (f"(line {line})" in str(caught.value)) == bool(line)
    assert time.perf_counter() - start < 20


def test_messages_cannot_be_changed() -> None:
    message = {"role": "user", "content": "a", "extra": [1]}
    with pytest.raises(TemplateError):
        template("{{ messages[0].extra.append(2) }}").render([message])
    with pytest.raises(TemplateError):
        template("{{ messages[0].update({'role': 'x'}) }}").render([message])
    assert message == {"role": "user", "content": "a", "extra": [1]}


def test_continuing_needs_an_answer_that_is_rendered() -> None:
    with pytest.raises(TemplateError, match="only a last message from the assistant"):
        render("{{ messages }}", TURNS[1], continue_final=True)
    with pytest.raises(TemplateError, match="only a last message"):
        render("{{ messages }}", continue_final=True)
    with pytest.raises(TemplateError, match="drops the last message"):
        render("fixed", TURNS[1], TURNS[2], continue_final=True)
    source = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}{% if add_generation_prompt %}GO{% endif %}"
    assert render(source, TURNS[1], TURNS[2], continue_final=True) == "[First?][One."


PIECES = st.sampled_from([
    "{{", "}}", "{%", "%}", " for ", " in ", " messages ", " if ", " endif ", " endfor ", " set ", " x ", "=",
    " macro ",
    " endmacro ", "f()", ".role", "[0]", "~", "'a'", " * ", "99999999", " ** ", "range(", ")", "|", "tojson", "length",
    " recursive ", "loop(", " break ", " generation ", "-", "\n", "{#", "#}",
])


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join))
def test_any_template_renders_or_raises_the_typed_error(source: str) -> None:
    try:
        assert isinstance(render(source, *TURNS), str)
    except TemplateError as error:
        assert str(error).startswith("the chat template ")


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=20)), max_size=4))
def test_text_of_messages_is_never_interpreted(turns: list[tuple[str, str]]) -> None:
    messages = [Message(role=role, content=content) for role, content in turns]
    text = render("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", *messages)
    assert text == "".join(f"<{role}>{content}" for role, content in turns)
