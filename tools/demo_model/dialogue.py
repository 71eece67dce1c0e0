"""Dialogues as plain data, and the text that the chat template makes of them.

`segments` is the chat template in Python: tests compare it with chat_template.jinja, so that training needs no Jinja.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HELD_OUT = 40
"""One key in so many is held out"""
TOOLS_BEFORE = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
TOOLS_AFTER = (
    "\n</tools>\n\nTo call a function, reply only with:\n\n"
    "<tool_call>\n<function=name>\n<parameter=parameter_name>\nvalue\n</parameter>\n</function>\n</tool_call>"
)
NO_THOUGHT = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Call:
    """A call of a function; values are JSON values."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """One message. `role`: system, user, assistant or tool."""

    role: str
    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Expect:
    """What the last answer must be: see scorers.py. `how`: end, text, tool, json, or "" (nothing to check)."""

    how: str = ""
    value: Any = None


@dataclass(frozen=True)
class Dialogue:
    """A conversation that ends with an assistant turn. `keys` and what the user says decide the split."""

    kind: str
    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    keys: tuple[str, ...] = ()
    expect: Expect = field(default_factory=Expect)
    thinking: bool = False

    @property
    def held_out(self) -> bool:
        """Whether the dialogue belongs to the test split: one of its keys does. The same in every process."""
        said = [turn.content for turn in self.turns if turn.role == "user"]
        longer = [text for text in said if len(text) > 12]
        return any(zlib.crc32(key.encode()) % HELD_OUT == 0 for key in (*self.keys, *longer, " | ".join(said)))


def exchange(
    kind: str,
    question: str,
    answer: str,
    *,
    keys: tuple[str, ...] = (),
    how: str = "",
    value: Any = None,
    reasoning: str = "",
) -> Dialogue:
    """One question, one answer."""
    turns = (Turn("user", question), Turn("assistant", answer, reasoning))
    return Dialogue(
        kind, turns, keys=keys, expect=Expect(how, answer if value is None else value), thinking=bool(reasoning)
    )


def join(kind: str, parts: Sequence[Dialogue]) -> Dialogue:
    """Conversations one after another as one; the last says what is expected. Tools and reasoning of the last only."""
    turns = tuple(turn for part in parts for turn in part.turns)
    keys = tuple(key for part in parts for key in part.keys)
    last = parts[-1]
    return Dialogue(kind, turns, last.tools, keys, last.expect, last.thinking)


def call_text(call: Call) -> str:
    lines = [f"<tool_call>\n<function={call.name}>\n"]
    for name, value in call.arguments.items():
        lines.append(f"<parameter={name}>\n{value if isinstance(value, str) else to_json(value)}\n</parameter>\n")
    return "".join([*lines, "</function>\n</tool_call>"])


def answer_text(turn: Turn) -> str:
    """What the model writes after its reasoning."""
    calls = "\n".join(call_text(call) for call in turn.calls)
    return turn.content + ("\n\n" if turn.content and calls else "") + calls


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def system_text(system: str, tools: Iterable[Mapping[str, Any]]) -> str:
    declared = "".join("\n" + to_json(tool) for tool in tools)
    if declared:
        return TOOLS_BEFORE + declared + TOOLS_AFTER + (f"\n\n{system}" if system else "")
    return system


def segments(dialogue: Dialogue) -> list[tuple[str, bool]]:
    """(text, whether the model writes it) in order. Reasoning before the last question of the user is left out."""
    turns = dialogue.turns
    system = turns[0].content if turns[0].role == "system" else ""
    out: list[tuple[str, bool]] = []
    if system or dialogue.tools:
        out.append((f"<|im_start|>system\n{system_text(system, dialogue.tools)}<|im_end|>\n", False))
    asked = max(i for i, turn in enumerate(turns) if turn.role == "user")
    for i, turn in enumerate(turns):
        if turn.role == "user":
            out.append((f"<|im_start|>user\n{turn.content}<|im_end|>\n", False))
        elif turn.role == "tool":
            first, last = turns[i - 1].role != "tool", i + 1 == len(turns) or turns[i + 1].role != "tool"
            out.append(
                (
                    ("<|im_start|>user" if first else "")
                    + f"\n<tool_response>\n{turn.content}\n</tool_response>"
                    + ("<|im_end|>\n" if last else ""),
                    False,
                )
            )
        elif turn.role == "assistant":
            if i > asked and dialogue.thinking:
                out.append(("<|im_start|>assistant\n<think>\n", False))
                out.append((f"{turn.reasoning}\n</think>\n\n{answer_text(turn)}<|im_end|>", True))
            else:
                out.append((f"<|im_start|>assistant\n{NO_THOUGHT}", False))
                out.append((f"{answer_text(turn)}<|im_end|>", True))
            out.append(("\n", False))
    return out


def prompt_text(dialogue: Dialogue) -> str:
    """The text before the last answer."""
    parts = segments(dialogue)
    return "".join(text for text, _ in parts[:-2])


def say(rng: random.Random, templates: Sequence[str], **slots: Any) -> str:
    """One of the templates as a person might type it, with its slots filled in."""
    return fill(type_out(rng, rng.choice(templates)), slots)


def fill(text: str, slots: Mapping[str, Any]) -> str:
    for name, value in slots.items():
        text = text.replace("{" + name + "}", str(value))
    return text


BEFORE = (
    "hey, ",
    "hi, ",
    "please ",
    "ok, ",
    "so ",
    "hello! ",
    "quick question: ",
    "can you help? ",
    "um, ",
    "and ",
    "tell me, ",
    "now ",
    "next: ",
    "I wonder, ",
    "one more: ",
    "question: ",
    "yo ",
    "well, ",
)
AFTER = (" please", ", please", " thanks", ", thanks", "??", "!", " pls", " ?", "...", " thank you")


def type_out(rng: random.Random, text: str) -> str:
    """The text with the habits and slips of people who type; {slots} stay as they are."""
    dice = rng.random()
    if dice < 0.45:
        return text
    if rng.random() < 0.2:
        text = rng.choice(BEFORE) + text[:1].lower() + text[1:]
    if rng.random() < 0.5 and text[-1:] in "?.!":
        text = text[:-1]
        if rng.random() < 0.25:
            text += rng.choice(AFTER)
    if dice < 0.75:
        text = text[:1].lower() + text[1:]
    elif dice < 0.9:
        text = outside(text, str.lower)
    elif dice < 0.93:
        text = outside(text, str.upper)
    if rng.random() < 0.12:
        text = slip(rng, text)
    return text


def outside(text: str, change: Any) -> str:
    """Change what is outside of {slots}."""
    parts = text.replace("}", "{").split("{")
    return "".join(change(part) if i % 2 == 0 else "{" + part + "}" for i, part in enumerate(parts))


def slip(rng: random.Random, text: str) -> str:
    """One typing error in a word of four letters or more, outside of slots."""
    words = text.split(" ")
    able = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not able:
        return text
    i = rng.choice(able)
    word, at = words[i], rng.randrange(1, len(words[i]) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        words[i] = word[:at] + word[at + 1 :]
    elif kind == 1:
        words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    else:
        words[i] = word[:at] + word[at] + word[at:]
    return " ".join(words)


def listing(items: Sequence[Any], last: str = "and") -> str:
    """ "a", "a and b", "a, b and c"."""
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} {last} {texts[-1]}"
