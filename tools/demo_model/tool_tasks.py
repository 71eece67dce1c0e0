"""Calls of functions: declarations, questions, calls, results that are fed back, and answers from them."""

from __future__ import annotations

import random
from typing import Any

from .chat import greeting, talk
from .dialogue import Call, Dialogue, Expect, Turn, listing, say, to_json
from .facts import capital, free
from .tool_uses import FLAG, KINDS, TEXT, WHOLE, Kind, Tool, Use, lookup
from .words import COLOURS, FRUITS, invented, person, place


def declare(rng: random.Random, kind: Kind) -> tuple[Tool, list[str]]:
    """A declaration as in the OpenAI API, and the names of its parameters."""
    names = []
    for choices, *_ in kind.parameters:
        names.append(rng.choice([n for n in choices if n not in names]))
    described = rng.random() < 0.5
    properties = {
        name: {"type": type_, **({"description": text} if described else {})}
        for name, (_, type_, text, _) in zip(names, kind.parameters, strict=True)
    }
    schema = {"type": "object", "properties": properties, "required": list(names)}
    name = rng.choice(kind.names) if rng.random() < 0.85 else f"{rng.choice(kind.names)}_{invented(rng, 1, 2).lower()}"
    return {
        "type": "function",
        "function": {"name": name, "description": rng.choice(kind.descriptions), "parameters": schema},
    }, names


def settle(rng: random.Random, kind: Kind) -> tuple[Tool, Use, Call]:
    tool, names = declare(rng, kind)
    question, values, result, answer = kind.use(rng)
    arguments = dict(zip(names, values, strict=True))
    return tool, Use(question, arguments, result, answer), Call(tool["function"]["name"], arguments)


def others(rng: random.Random, kind: Kind, most: int = 3) -> list[Tool]:
    picked = rng.sample([k for k in KINDS if k is not kind], rng.randint(0, most))
    return [declare(rng, k)[0] for k in picked]


def with_tools(rng: random.Random, first: Tool, kind: Kind) -> tuple[Tool, ...]:
    tools = [first, *others(rng, kind)]
    rng.shuffle(tools)
    return tuple(tools)


def called(rng: random.Random) -> Dialogue:
    """A question that needs a call; half of the dialogues go on to the answer."""
    kind = rng.choice(KINDS)
    tool, use, call = settle(rng, kind)
    turns = [Turn("user", use.question), Turn("assistant", calls=(call,))]
    keys = (use.question,)
    if rng.random() < 0.5:
        return Dialogue("tool", tuple(turns), with_tools(rng, tool, kind), keys, Expect("tool", (call,)))
    turns += [Turn("tool", use.result), Turn("assistant", use.answer)]
    return Dialogue("tool_answer", tuple(turns), with_tools(rng, tool, kind), keys, Expect("text", use.answer))


def again(rng: random.Random) -> Dialogue:
    """The same function for a second question."""
    kind = rng.choice(KINDS)
    tool, names = declare(rng, kind)
    turns: list[Turn] = []
    keys: list[str] = []
    call, last = Call("", {}), ("", "")
    for i in range(rng.choice((2, 2, 3))):
        question, values, result, answer = kind.use(rng)
        call = Call(tool["function"]["name"], dict(zip(names, values, strict=True)))
        if i:
            turns += [Turn("tool", last[0]), Turn("assistant", last[1])]
        turns += [Turn("user", question), Turn("assistant", calls=(call,))]
        keys.append(question)
        last = (result, answer)
    return Dialogue("tool", tuple(turns), with_tools(rng, tool, kind), tuple(keys), Expect("tool", (call,)))


def several(rng: random.Random) -> Dialogue:
    """Two calls at once."""
    kind = rng.choice([KINDS[0], KINDS[2], KINDS[12], KINDS[4]])
    tool, names = declare(rng, kind)
    name = tool["function"]["name"]
    uses = [kind.use(rng) for _ in range(2)]
    values = [use[1][0] for use in uses]
    ask = {
        KINDS[0]: ("What is the weather in {v}?", "weather in {v}", "How is the weather in {v}?"),
        KINDS[2]: ("What time is it in {v}?", "time in {v}"),
        KINDS[12]: ("What is the price of {v}?", "prices of {v}"),
        KINDS[4]: ("Look up {v}.", "Search for {v}."),
    }[kind]
    question = say(rng, ask, v=listing(values))
    calls = tuple(Call(name, {names[0]: value}) for value in values)
    turns = [Turn("user", question), Turn("assistant", calls=calls)]
    if rng.random() < 0.5:
        return Dialogue("tool", tuple(turns), with_tools(rng, tool, kind), (question,), Expect("tool", calls))
    answer = " ".join(use[3] for use in uses)
    turns += [*(Turn("tool", use[2]) for use in uses), Turn("assistant", answer)]
    return Dialogue("tool_answer", tuple(turns), with_tools(rng, tool, kind), (question,), Expect("text", answer))


def missing(rng: random.Random) -> Dialogue:
    """A place is missing: the model asks, then calls."""
    kind = rng.choice([KINDS[0], KINDS[2]])
    tool, names = declare(rng, kind)
    city = place(rng)
    question = say(
        rng,
        ("What is the weather?", "How is the weather?", "weather please", "What's the weather like?")
        if kind is KINDS[0]
        else ("What time is it?", "What's the time?", "time please", "Tell me the time."),
    )
    turns = [Turn("user", question), Turn("assistant", "For which city?")]
    if rng.random() < 0.3:
        return Dialogue("tool_answer", tuple(turns), with_tools(rng, tool, kind), (), Expect("text", "which city"))
    call = Call(tool["function"]["name"], {names[0]: city})
    turns += [
        Turn("user", say(rng, ("{c}", "In {c}.", "{c}, please", "For {c}"), c=city)),
        Turn("assistant", calls=(call,)),
    ]
    return Dialogue("tool", tuple(turns), with_tools(rng, tool, kind), (city,), Expect("tool", (call,)))


def free_form(rng: random.Random) -> Dialogue:
    """A function that nobody has seen before, called as the user says."""
    verb = rng.choice(
        (
            "get",
            "set",
            "make",
            "open",
            "close",
            "add",
            "find",
            "run",
            "start",
            "stop",
            "check",
            "update",
            "delete",
            "list",
            "move",
            "print",
        )
    )
    noun = (
        rng.choice(
            (
                "file",
                "door",
                "note",
                "user",
                "song",
                "task",
                "order",
                "report",
                "record",
                "robot",
                "camera",
                "car",
                "page",
                "event",
                "item",
            )
        )
        if rng.random() < 0.6
        else invented(rng).lower()
    )
    name = f"{verb}_{noun}"
    keys = rng.sample(
        (
            "id",
            "name",
            "title",
            "count",
            "color",
            "size",
            "path",
            "level",
            "mode",
            "user",
            "date",
            "speed",
            "target",
            "kind",
            "value",
            "key",
            "enabled",
        ),
        rng.randrange(1, 4),
    )
    arguments: dict[str, Any] = {}
    for key in keys:
        if key in ("id", "count", "size", "level", "speed"):
            arguments[key] = rng.randrange(1, 1000)
        elif key == "enabled":
            arguments[key] = rng.random() < 0.5
        else:
            arguments[key] = rng.choice(
                (
                    person(rng),
                    rng.choice(COLOURS),
                    rng.choice(FRUITS),
                    invented(rng).lower(),
                    str(rng.randrange(100)) + "a",
                )
            )
    types = {bool: FLAG, int: WHOLE, str: TEXT}
    schema = {
        "type": "object",
        "properties": {key: {"type": types[type(value)]} for key, value in arguments.items()},
        "required": keys,
    }
    tool: Tool = {
        "type": "function",
        "function": {"name": name, "description": f"{verb.capitalize()} a {noun}", "parameters": schema},
    }
    shown = {key: to_json(value) if isinstance(value, bool) else value for key, value in arguments.items()}
    q = say(
        rng,
        (
            "Call {f} with {p}.",
            "Use {f} with {p}.",
            "{v} the {n} with {p}.",
            "Please {v} a {n}: {p}",
            "Run {f}: {p}",
            "{v} {n} {p}",
        ),
        f=name,
        v=verb,
        n=noun,
        p=listing([f"{key} {value}" if rng.random() < 0.6 else f"{key}={value}" for key, value in shown.items()]),
    )
    call = Call(name, arguments)
    picked = rng.sample(KINDS, rng.randrange(0, 3))
    tools = [tool, *(declare(rng, k)[0] for k in picked)]
    rng.shuffle(tools)
    turns = [Turn("user", q), Turn("assistant", calls=(call,))]
    if rng.random() < 0.3:
        result = rng.choice(("ok", "done", to_json({"status": "ok"})))
        turns += [Turn("tool", result), Turn("assistant", "Done.")]
        return Dialogue("tool_answer", tuple(turns), tuple(tools), (q,), Expect("text", "Done"))
    return Dialogue("tool", tuple(turns), tuple(tools), (q,), Expect("tool", (call,)))


def unneeded(rng: random.Random) -> Dialogue:
    """Functions are there, but the question does not need them. Small talk, which has several right answers, is not
    checked."""
    made = rng.choice((talk, greeting, capital, free))(rng)
    picked = rng.sample([k for k in KINDS if k.use not in (lookup,)], rng.randint(1, 3))
    return Dialogue(
        "tool_none",
        made.turns,
        tuple(declare(rng, k)[0] for k in picked),
        made.keys,
        made.expect,
    )


def failed(rng: random.Random) -> Dialogue:
    """The function reports an error."""
    kind = rng.choice(KINDS)
    tool, use, call = settle(rng, kind)
    text = rng.choice(("not found", "timeout", "no connection", "unknown", "access denied", "invalid input"))
    turns = (
        Turn("user", use.question),
        Turn("assistant", calls=(call,)),
        Turn("tool", rng.choice((f"error: {text}", to_json({"error": text})))),
        Turn("assistant", f"I am sorry, that did not work: {text}."),
    )
    return Dialogue("tool_answer", turns, with_tools(rng, tool, kind), (use.question,), Expect("text", text))


MAKERS = ((called, 10), (again, 3), (several, 2), (missing, 1), (free_form, 6), (unneeded, 3), (failed, 1))
