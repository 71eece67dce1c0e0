"""The dialogues of the demo model: determined by the seed, right, and rendered as its chat template does."""

from __future__ import annotations

import functools
import itertools
import json
import random
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from blackwell_infer.text.template import ChatTemplate
from tools.demo_model import arithmetic, data, facts, follow, measures, stories, tool_tasks
from tools.demo_model.bpe import MARKERS, SPECIALS, TEMPLATE, Vocabulary, train
from tools.demo_model.dialogue import (
    HELD_OUT,
    Call,
    Dialogue,
    Expect,
    Turn,
    answer_text,
    call_text,
    prompt_text,
    segments,
    slip,
    type_out,
)
from tools.demo_model.scorers import correct, parse_calls, well_formed

COUNT = 1500


def made(seed: int, count: int = COUNT) -> list[Dialogue]:
    rng = random.Random(seed)
    return [data.dialogue(rng) for _ in range(count)]


def message(turn: Turn) -> dict[str, Any]:
    out: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.reasoning:
        out["reasoning_content"] = turn.reasoning
    if turn.calls:
        out["tool_calls"] = [
            {"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}} for c in turn.calls
        ]
    return out


@functools.cache
def template() -> ChatTemplate:
    return ChatTemplate(TEMPLATE.read_text(encoding="utf-8"), "", "<|im_end|>")


def render(turns: Sequence[Turn], d: Dialogue, prompt: bool) -> str:
    return template().render(
        [message(turn) for turn in turns],
        tools=list(d.tools) or None,
        add_generation_prompt=prompt,
        enable_thinking=d.thinking,
    )


def test_a_seed_determines_the_dialogues() -> None:
    assert made(3, 300) == made(3, 300) != made(4, 300)
    first, second = (list(itertools.islice(data.training(0, w), 100)) for w in (0, 1))
    assert first != second and first == list(itertools.islice(data.training(0, 0), 100))


def test_no_held_out_dialogue_is_trained_on() -> None:
    test = {" | ".join(t.content for t in d.turns) for d in data.held_out(0, 200)}
    trained = {" | ".join(t.content for t in d.turns) for d in itertools.islice(data.training(0), 5000)}
    assert len(test) == 200 and not test & trained
    for d in itertools.islice(data.training(1), 2000):
        said = [t.content for t in d.turns if t.role == "user" and len(t.content) > 12]
        assert all(zlib.crc32(key.encode()) % HELD_OUT for key in (*said, *d.keys))


def test_every_expectation_is_met_by_the_written_answer() -> None:
    for d in made(0):
        assert d.turns[-1].role == "assistant"
        answer = answer_text(d.turns[-1])
        assert correct(answer, d.expect) and well_formed(answer, d.expect), (d.turns[-2], answer, d.expect)


def test_every_subject_occurs() -> None:
    assert {d.kind for d in made(0, 4000)} >= {
        "arithmetic",
        "reasoning",
        "units",
        "dates",
        "follow",
        "spelling",
        "sorting",
        "counting",
        "copying",
        "words",
        "facts",
        "unknown",
        "memory",
        "json",
        "tool",
        "tool_answer",
        "tool_none",
        "refusal",
        "identity",
        "chat",
        "story",
    }


def test_the_template_renders_what_is_trained_on() -> None:
    for d in made(1, 400):
        whole = "".join(text for text, _ in segments(d))
        assert render(d.turns, d, False) == whole
        assert render(d.turns[:-1], d, True) == prompt_text(d)
        assert whole.startswith(prompt_text(d))


def test_a_system_message_without_tools_and_with_them() -> None:
    turns = (Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello!"))
    for tools in ((), ({"type": "function", "function": {"name": "f", "parameters": {}}},)):
        d = Dialogue("chat", turns, tools)
        assert render(turns, d, False) == "".join(text for text, _ in segments(d))


SIDE = r"-?\d+(?: [-+×/] -?\d+)*"
CHAIN = re.compile(rf"(?<![\w.-]){SIDE}(?: = {SIDE})+(?: remainder \d+)?(?![\d.]*\d)")


def test_every_written_equation_holds() -> None:
    """Those of steps within answers too. Fahrenheit stands in brackets and is left out."""
    found = 0
    for d in made(2):
        for text in (
            f"{t.content} {t.reasoning}" for t in d.turns if t.role == "assistant" and d.kind != "tool_answer"
        ):
            for chain in CHAIN.findall(text) if "(" not in text else ():
                sides, _, rest = chain.partition(" remainder ")
                values = [evaluate(side) for side in sides.split(" = ")]
                if rest:
                    divisor = int(sides.partition(" = ")[0].rpartition(" / ")[2])
                    values[0] -= int(rest) / divisor
                assert max(values) - min(values) < 1e-9, text
                found += 1
    assert found > 300


def evaluate(side: str) -> float:
    """Products and quotients first."""
    total, sign = 0.0, 1
    for token in re.split(r" ([-+]) ", side):
        if token in ("+", "-"):
            sign = 1 if token == "+" else -1
            continue
        first, *more = re.split(r" ([×/]) ", token)
        value = float(first)
        for op, number in zip(more[::2], more[1::2], strict=True):
            value = value * int(number) if op == "×" else value / int(number)
        total += sign * value
    return total


@pytest.mark.parametrize(
    "a, op, b, end",
    [
        (47, "+", 38, "85"),
        (38, "-", 47, "-9"),
        (47, "×", 38, "1786"),
        (7, "×", 8, "56"),
        (123, "×", 4, "492"),
        (97, "/", 8, "12 remainder 1"),
        (97, "/", 4, "24 remainder 1 (24.25)"),
        (96, "/", 8, "12"),
        (20, "×", 30, "600"),
        (305, "×", 6, "1830"),
    ],
)
def test_sums(a: int, op: str, b: int, end: str) -> None:
    answer, ends = arithmetic.answer_sum(a, op, b)
    assert ends == end and correct(answer, Expect("end", end)) and answer.startswith(f"{a} {op} {b} = ")


@pytest.mark.parametrize(
    "n, factor, u, v, about, answer",
    [
        (3, "2.54", "inches", "cm", False, "3 × 2.54 = 7.62, so 3 inches are 7.62 cm."),
        (10, "1.6", "miles", "kilometers", True, "10 × 1.6 = 16, so 10 miles are about 16 kilometers."),
        (1, "12", "feet", "inches", False, "1 foot is 12 inches."),
        (5, "0.2", "lbs", "inches", True, "5 × 0.2 = 1, so 5 lbs are about 1 inch."),
    ],
)
def test_conversions(n: int, factor: str, u: str, v: str, about: bool, answer: str) -> None:
    written, end = measures.conversion(n, factor, u, v, about)
    assert written == answer and correct(written, Expect("end", end))


DECIMAL = re.compile(r"(?<![\w.-])(-?[\d.]+) × ([\d.]+) = (-?[\d.]+),")


def test_decimals_and_temperatures_hold() -> None:
    rng = random.Random(9)
    seen = set()
    for _ in range(1500):
        text = rng.choice((measures.between, measures.temperature, follow.more_units))(rng).turns[-1].content
        for a, b, product in DECIMAL.findall(text):
            assert float(a) * float(b) == pytest.approx(float(product)), text
            seen.add("decimal")
        if "°F are" in text:
            f, c = re.findall(r"(-?[\d.]+) °[FC]", text)
            assert float(c) == pytest.approx((float(f) - 32) * 5 / 9, abs=0.05), text
            seen.add("C")
        elif "°C are" in text:
            c, f = re.findall(r"(-?[\d.]+) °[FC]", text)
            assert float(f) == pytest.approx(float(c) * 9 / 5 + 32), text
            seen.add("F")
    assert seen == {"decimal", "C", "F"}


def test_sums_go_on_from_the_last_result() -> None:
    rng = random.Random(4)
    for _ in range(300):
        answers = [turn.content.rstrip(".") for turn in follow.sums_go_on(rng).turns if turn.role == "assistant"]
        assert len(answers) > 1
        for before, after in itertools.pairwise(answers):
            assert after.startswith(f"{before.rpartition(' = ')[2]} "), answers


def test_calls_parse_and_fit_their_declarations() -> None:
    rng = random.Random(5)
    for _ in range(600):
        d = rng.choice([maker for maker, _ in tool_tasks.MAKERS])(rng)
        declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in d.tools}
        for turn in d.turns:
            if turn.calls:
                assert [call.name for call in parse_calls(answer_text(turn)) or ()] == [
                    call.name for call in turn.calls
                ]
            for call in turn.calls:
                schema = declared[call.name]
                assert set(call.arguments) == set(schema["required"])
                types = {"string": str, "integer": int, "number": int, "boolean": bool}
                assert all(
                    isinstance(value, types[schema["properties"][key]["type"]]) for key, value in call.arguments.items()
                )


def test_json_answers_are_json() -> None:
    answers = [d for d in made(6) if d.kind == "json"]
    assert len(answers) > 100 and all(json.loads(d.turns[-1].content) == d.expect.value for d in answers)


CALL = Call("f", {"a": "x y", "n": 3, "b": True})


@pytest.mark.parametrize(
    "answer, how, value, right",
    [
        ("12 + 7 = 19.", "end", "19", True),
        ("12 + 7 = 119.", "end", "19", False),
        ("It is -19.", "end", "19", False),
        ("19", "end", "19", True),
        ("", "end", "19", False),
        ("Your name is Anna.", "text", "Anna", True),
        ("I do not know.", "text", "Anna", False),
        (call_text(CALL), "tool", (CALL,), True),
        ("Sure! " + call_text(CALL), "tool", (CALL,), False),
        (call_text(Call("g", {})), "tool", (CALL,), False),
        (call_text(CALL).replace("</parameter>", "", 1), "tool", (CALL,), False),
        ('{"a": 1}', "json", {"a": 1}, True),
        ('{"a": "1"}', "json", {"a": 1}, False),
        ('{"a": true}', "json", {"a": 1}, False),
        ('{"a": 1', "json", {"a": 1}, False),
        ('{"b": 1, "a": 2}', "json", {"a": 2, "b": 1}, False),
    ],
)
def test_scorers(answer: str, how: str, value: Any, right: bool) -> None:
    assert correct(answer, Expect(how, value)) is right


def test_form_and_content_are_different_scores() -> None:
    expect = Expect("json", {"a": 1, "b": 2})
    assert (
        well_formed('{"a": 5, "b": 6}', expect)
        and not well_formed('{"a": 1}', expect)
        and not well_formed("[1, 2]", expect)
    )
    other = call_text(Call("g", {"x": "1"}))
    assert well_formed(other, Expect("tool", (CALL,))) and not correct(other, Expect("tool", (CALL,)))


def test_typing_leaves_slots_alone() -> None:
    rng = random.Random(0)
    for _ in range(500):
        assert type_out(rng, "What is the capital of {country}, please?").count("{country}") == 1
    assert slip(rng, "a {b} c") == "a {b} c"


def test_facts_have_a_question_and_an_answer() -> None:
    assert len(facts.FREE) + sum(map(len, (facts.CAPITALS, facts.ELEMENTS, facts.CLASSES, facts.AUTHORS))) > 300
    assert all(questions and answer.endswith(".") for questions, answer in facts.FREE)
    assert len({answer for _, answer in facts.FREE}) == len(facts.FREE)


def test_stories_differ() -> None:
    rng = random.Random(1)
    told = {stories.story(rng).turns[-1].content for _ in range(100)}
    assert len(told) == 100 and not any("{" in text for text in told)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["".join(text for text, _ in segments(d)) for d in made(9, 300)]
    for marker in (*SPECIALS, *MARKERS):
        texts = [text.replace(marker, "\n") for text in texts]
    train(iter(texts), 600, folder)
    return Vocabulary(folder / "tokenizer.json")


def test_the_encoder_gives_the_ids_of_the_library(
    vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tokenizers import Tokenizer

    assert vocabulary.size == 600
    file = next(tmp_path_factory.getbasetemp().glob("tokenizer*/tokenizer.json"))
    backend = Tokenizer.from_file(str(file))
    texts = ["".join(text for text, _ in segments(d)) for d in made(10, 200)]
    texts += [
        "  two  spaces\n\n and\ttabs \r\n",
        "naïve café, Überraschung! 日本語 🙂",
        "it's I'LL don't",
        "12.5e3 a_b __x__",
        "<|im_start|> <think>x</think>",
        " ",
        "",
    ]
    for text in texts:
        ids = vocabulary.encode(text)
        assert ids == backend.encode(text, add_special_tokens=False).ids, text
        assert vocabulary.decode(ids) == text
    assert len(vocabulary.encode("1234")) == 4 and len(vocabulary.encode("<tool_call>")) == 1


def test_rows_hold_whole_conversations(vocabulary: Vocabulary) -> None:
    book = ["It was a dark night. " * 200 + "\n" + "The end came soon. " * 300]
    rows = list(itertools.islice(data.rows(vocabulary, 0, 0, 1024, book, share=0.2), 6))
    again = list(itertools.islice(data.rows(vocabulary, 0, 0, 1024, book, share=0.2), 6))
    assert all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))
    for ids, weights, number in rows:
        assert (np.diff(number.astype(int)) >= 0).all() and set(weights.tolist()) <= {0, 3, 10}
        end = vocabulary.added["<|im_end|>"]
        for n in range(int(number[-1])):
            mine = ids[number == n]
            assert mine[-1] == vocabulary.end and (mine[:-1] != vocabulary.end).all()
            if (weights[number == n] == 10).any():
                assert vocabulary.decode(mine[:1]) == "<|im_start|>" and mine[-3] == end
    assert any((weights == 3).any() for _, weights, _ in rows)
