"""Calls of functions: declarations, questions, arguments, results that are fed back, and answers from them."""
from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .arithmetic import operands
from .chat import greeting, talk
from .dialogue import Call, Dialogue, Expect, Turn, listing, say, to_json
from .facts import capital, free
from .words import ANIMALS, COLOURS, FOODS, FRUITS, LANGUAGES, invented, person, place

Tool = Mapping[str, Any]


@dataclass(frozen=True)
class Use:
    """A question, the arguments that it asks for, the result, and the answer made of it."""

    question: str
    arguments: dict[str, Any]
    result: str
    answer: str


@dataclass(frozen=True)
class Kind:
    """A function under one of several names. `parameters`: (names to choose from, type, description, required)."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[tuple[tuple[str, ...], str, str, bool], ...]
    use: Callable[[random.Random], tuple[str, list[Any], str, str]]
    """(question, values of the parameters, None for those left out; result; answer)"""


def weather(rng: random.Random) -> tuple[str, list[Any], str, str]:
    c, t = place(rng), rng.randrange(-10, 38)
    sky = rng.choice(("sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear"))
    q = say(rng, ("What is the weather in {c}?", "How is the weather in {c}?", "What's the weather like in {c} today?", "weather in {c}", "Is it raining in {c}?",
                  "How warm is it in {c}?", "Do I need an umbrella in {c}?", "Tell me the weather for {c}.", "{c} weather?", "Will it be cold in {c} today?",
                  "What is the temperature in {c}?"), c=c)
    result = rng.choice((to_json({"temperature": t, "sky": sky}), to_json({"city": c, "temp_c": t, "condition": sky}), f"{t} °C, {sky}"))
    return q, [c], result, f"It is {sky} in {c}, with {t} °C."


def calculator(rng: random.Random) -> tuple[str, list[Any], str, str]:
    if rng.random() < 0.5:
        a, b = rng.randrange(100, 10000), rng.randrange(10, 10000)
        op = rng.choice("+-*/")
    else:
        a, op, b = operands(rng)
        op = "*" if op == "×" else op
    value: Any = {"+": a + b, "-": a - b, "*": a * b, "/": round(a / max(b, 1), 2)}[op]
    value = int(value) if value == int(value) else value
    text = f"{a} {op} {b}"
    words = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[op]
    shown = text if rng.random() < 0.6 else f"{a} {words} {b}"
    q = say(rng, ("What is {e}?", "Calculate {e}.", "{e}", "How much is {e}?", "Compute {e}", "Use the calculator: {e}", "{e} = ?"), e=shown)
    return q, [text], rng.choice((str(value), to_json({"result": value}))), f"{text} = {value}."


def clock(rng: random.Random) -> tuple[str, list[Any], str, str]:
    c, t = place(rng), f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    q = say(rng, ("What time is it in {c}?", "What's the time in {c}?", "Tell me the time in {c}.", "time in {c}?", "Current time in {c}", "How late is it in {c}?"), c=c)
    return q, [c], rng.choice((t, to_json({"time": t}), to_json({"city": c, "time": t}))), f"It is {t} in {c}."


def today(rng: random.Random) -> tuple[str, list[Any], str, str]:
    d = f"{rng.randrange(2020, 2031)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"
    q = say(rng, ("What is the date today?", "What's today's date?", "Which date is it?", "current date?", "What day is today?"))
    return q, [], rng.choice((d, to_json({"date": d}))), f"Today is {d}."


def lookup(rng: random.Random) -> tuple[str, list[Any], str, str]:
    x = invented(rng) if rng.random() < 0.6 else rng.choice(ANIMALS + FRUITS)
    text = rng.choice((f"{x} is a small town in the north.", f"{x} is a plant with {rng.choice(COLOURS)} flowers.", f"{x} was founded in {rng.randrange(1500, 2000)}.",
                       f"{x} has {rng.randrange(100, 90000)} inhabitants.", f"{x} is a {rng.choice(COLOURS)} animal of the forest."))
    q = say(rng, ("Who or what is {x}?", "Look up {x}.", "Search for {x}.", "What is {x}?", "Find information about {x}", "Tell me about {x}.", "search {x}",
                  "What do you find about {x}?", "Look for {x} please"), x=x)
    return q, [x], rng.choice((text, to_json({"text": text}))), text


def timer(rng: random.Random) -> tuple[str, list[Any], str, str]:
    n = rng.randrange(1, 91)
    q = say(rng, ("Set a timer for {n} minutes.", "Start a timer of {n} minutes.", "timer {n} minutes", "Wake me in {n} minutes.", "Please set a {n} minute timer"), n=n)
    return q, [n], rng.choice(("ok", to_json({"status": "ok"}), "done")), f"The timer is set for {n} minutes."


def reminder(rng: random.Random) -> tuple[str, list[Any], str, str]:
    what = rng.choice(("call", "visit", "write to", "meet", "pay", "help")) + " " + person(rng) if rng.random() < 0.6 else f"buy {rng.choice(FOODS + FRUITS)}"
    t = f"{rng.randrange(6, 23)}:{rng.choice(('00', '15', '30', '45'))}"
    q = say(rng, ("Remind me to {w} at {t}.", "Set a reminder for {t}: {w}", "At {t}, remind me to {w}.", "I must {w} at {t}, remind me", "reminder {w} at {t}"), w=what, t=t)
    return q, [what, t], rng.choice(("ok", to_json({"status": "ok"}))), f"I will remind you at {t} to {what}."


def currency(rng: random.Random) -> tuple[str, list[Any], str, str]:
    names = {"USD": "dollars", "EUR": "euros", "GBP": "pounds", "JPY": "yen", "CHF": "francs"}
    a, b = rng.sample(list(names), 2)
    n, value = rng.randrange(1, 1000), rng.randrange(1, 2000)
    coded = rng.random() < 0.5
    q = say(rng, ("Convert {n} {a} to {b}.", "How much is {n} {a} in {b}?", "{n} {a} in {b}", "What are {n} {a} in {b}?", "change {n} {a} into {b}"), n=n,
            a=a if coded else names[a], b=b if coded else names[b])
    return q, [n, a, b], rng.choice((str(value), to_json({"amount": value, "currency": b}))), f"{n} {a} are {value} {b}."


def translate(rng: random.Random) -> tuple[str, list[Any], str, str]:
    x, lang, y = rng.choice(ANIMALS + FRUITS + COLOURS), rng.choice(LANGUAGES), invented(rng).lower()
    q = say(rng, ("Translate {x} to {l}.", "What is {x} in {l}?", "How do you say {x} in {l}?", "translate {x} into {l}", "{x} in {l}?"), x=x, l=lang)
    return q, [x, lang], rng.choice((y, to_json({"translation": y}))), f"In {lang}, {x} is {y}."


def message(rng: random.Random) -> tuple[str, list[Any], str, str]:
    n = person(rng)
    text = rng.choice(("I am late", "see you soon", "happy birthday", "call me back", "dinner is ready", "good luck", "the train is late", "I will be there at noon", "thank you"))
    q = say(rng, ("Send a message to {n}: {t}", "Tell {n}: {t}", "Write to {n}: {t}", "Message {n} that says {t}", "text {n} {t}"), n=n, t=text)
    return q, [n, text], rng.choice(("sent", to_json({"status": "sent"}), "ok")), f"I sent your message to {n}."


def light(rng: random.Random) -> tuple[str, list[Any], str, str]:
    room, on = rng.choice(("kitchen", "bedroom", "bathroom", "hall", "garage", "office", "living room", "garden")), rng.random() < 0.5
    word = "on" if on else "off"
    q = say(rng, ("Turn {w} the light in the {r}.", "Switch {w} the {r} light.", "Lights {w} in the {r}", "Please turn the {r} light {w}.", "{r} light {w}"), w=word, r=room)
    return q, [room, on], rng.choice(("ok", to_json({"status": "ok"}), "done")), f"The light in the {room} is {word}."


def dice(rng: random.Random) -> tuple[str, list[Any], str, str]:
    n = rng.choice((4, 6, 8, 10, 12, 20, 100))
    value = rng.randrange(1, n + 1)
    q = say(rng, ("Roll a die with {n} sides.", "Roll a {n}-sided die.", "Throw a d{n}", "roll d{n}", "Give me a random number from 1 to {n}."), n=n)
    return q, [n], rng.choice((str(value), to_json({"value": value}))), f"You rolled a {value}."


def price(rng: random.Random) -> tuple[str, list[Any], str, str]:
    symbol = "".join(rng.choice("ABCDEFGHIKLMNOPRSTUVXYZ") for _ in range(rng.randrange(2, 5)))
    value = rng.randrange(1, 900)
    q = say(rng, ("What is the price of {s}?", "Stock price of {s}?", "How much is {s} worth?", "price {s}", "What does a share of {s} cost?"), s=symbol)
    return q, [symbol], rng.choice((str(value), to_json({"price": value}), to_json({"symbol": symbol, "price": value}))), f"The price of {symbol} is {value}."


def music(rng: random.Random) -> tuple[str, list[Any], str, str]:
    n = person(rng) if rng.random() < 0.4 else invented(rng)
    q = say(rng, ("Play {n}.", "Play some music by {n}.", "I want to hear {n}.", "Put on {n}", "play songs by {n}"), n=n)
    return q, [n], rng.choice(("playing", to_json({"status": "playing"}), "ok")), f"Now playing {n}."


def table(rng: random.Random) -> tuple[str, list[Any], str, str]:
    n, p, t = rng.randrange(1, 12), invented(rng), f"{rng.randrange(11, 23)}:{rng.choice(('00', '30'))}"
    q = say(rng, ("Book a table for {n} at {p} at {t}.", "Reserve a table at {p} for {n} people at {t}.", "I want to eat at {p} at {t}, we are {n}.", "table for {n}, {p}, {t}"), n=n, p=p, t=t)
    return q, [p, n, t], rng.choice(("booked", to_json({"status": "booked"}), "ok")), f"I booked a table for {n} at {p} at {t}."


S, I, N, B = "string", "integer", "number", "boolean"
KINDS = (
    Kind(("get_weather", "weather", "current_weather", "get_current_weather", "fetch_weather"), ("Get the weather of a city", "Weather now", "Current weather at a place"),
         ((("city", "location", "place"), S, "name of the city", True),), weather),
    Kind(("calculator", "calculate", "calc", "evaluate", "compute"), ("Evaluate a sum", "Calculator", "Work out an arithmetic expression"),
         ((("expression", "expr", "input", "formula"), S, "such as 2 + 3", True),), calculator),
    Kind(("get_time", "clock", "current_time", "get_current_time", "time_in"), ("Get the time in a city", "Clock", "The time at a place"),
         ((("city", "location", "place", "timezone"), S, "name of the city", True),), clock),
    Kind(("get_date", "today", "current_date"), ("Get today's date", "The date of today"), (), today),
    Kind(("lookup", "search", "search_web", "wiki", "find"), ("Look something up", "Search the web", "Search an encyclopedia"),
         ((("query", "term", "q", "name", "topic"), S, "what to look for", True),), lookup),
    Kind(("set_timer", "timer", "start_timer"), ("Set a timer", "Start a countdown"), ((("minutes", "duration", "length"), I, "in minutes", True),), timer),
    Kind(("add_reminder", "set_reminder", "remind"), ("Add a reminder", "Remind the user"), ((("text", "what", "task"), S, "what to do", True),
                                                                                       (("time", "at", "when"), S, "when", True)), reminder),
    Kind(("convert_currency", "exchange", "currency"), ("Convert money", "Exchange rates"), ((("amount", "value"), N, "how much", True),
         (("from", "source", "from_currency"), S, "currency code", True), (("to", "target", "to_currency"), S, "currency code", True)), currency),
    Kind(("translate", "translate_text", "translator"), ("Translate a text", "Translator"), ((("text", "word", "phrase"), S, "what to translate", True),
         (("language", "target", "to"), S, "target language", True)), translate),
    Kind(("send_message", "send_text", "message"), ("Send a message", "Write to a person"), ((("to", "recipient", "person"), S, "who gets it", True),
         (("text", "message", "body"), S, "the message", True)), message),
    Kind(("set_light", "switch_light", "light"), ("Switch a light", "Turn a light on or off"), ((("room", "place"), S, "the room", True), (("on", "state", "enabled"), B, "whether it is on", True)), light),
    Kind(("roll_dice", "roll", "random_number"), ("Roll a die", "Random number"), ((("sides", "max", "n"), I, "number of sides", True),), dice),
    Kind(("get_price", "stock_price", "quote"), ("Get the price of a share", "Stock price"), ((("symbol", "ticker"), S, "symbol of the share", True),), price),
    Kind(("play_music", "play", "player"), ("Play music", "Music player"), ((("artist", "name", "query"), S, "what to play", True),), music),
    Kind(("book_table", "reserve_table", "reservation"), ("Book a table", "Reserve a table at a restaurant"), ((("restaurant", "place", "where"), S, "name of the restaurant", True),
         (("people", "guests", "seats"), I, "number of people", True), (("time", "at", "when"), S, "when", True)), table),
)


def declare(rng: random.Random, kind: Kind) -> tuple[Tool, list[str]]:
    """A declaration as in the OpenAI API, and the names of its parameters."""
    names = []
    for choices, *_ in kind.parameters:
        names.append(rng.choice([n for n in choices if n not in names]))
    described = rng.random() < 0.5
    properties = {name: {"type": type_, **({"description": text} if described else {})}
                  for name, (_, type_, text, _) in zip(names, kind.parameters, strict=True)}
    schema = {"type": "object", "properties": properties, "required": list(names)}
    name = rng.choice(kind.names) if rng.random() < 0.85 else f"{rng.choice(kind.names)}_{invented(rng, 1, 2).lower()}"
    return {"type": "function", "function": {"name": name, "description": rng.choice(kind.descriptions), "parameters": schema}}, names


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
    call = Call("", {})
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
    ask = {KINDS[0]: ("What is the weather in {v}?", "weather in {v}", "How is the weather in {v}?"), KINDS[2]: ("What time is it in {v}?", "time in {v}"),
           KINDS[12]: ("What is the price of {v}?", "prices of {v}"), KINDS[4]: ("Look up {v}.", "Search for {v}.")}[kind]
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
    question = say(rng, ("What is the weather?", "How is the weather?", "weather please", "What's the weather like?") if kind is KINDS[0] else
                   ("What time is it?", "What's the time?", "time please", "Tell me the time."))
    turns = [Turn("user", question), Turn("assistant", "For which city?")]
    if rng.random() < 0.3:
        return Dialogue("tool_answer", tuple(turns), with_tools(rng, tool, kind), (), Expect("text", "which city"))
    call = Call(tool["function"]["name"], {names[0]: city})
    turns += [Turn("user", say(rng, ("{c}", "In {c}.", "{c}, please", "For {c}")  , c=city)), Turn("assistant", calls=(call,))]
    return Dialogue("tool", tuple(turns), with_tools(rng, tool, kind), (city,), Expect("tool", (call,)))


def free_form(rng: random.Random) -> Dialogue:
    """A function that nobody has seen before, called as the user says."""
    verb = rng.choice(("get", "set", "make", "open", "close", "add", "find", "run", "start", "stop", "check", "update", "delete", "list", "move", "print"))
    noun = rng.choice(("file", "door", "note", "user", "song", "task", "order", "report", "record", "robot", "camera", "car", "page", "event", "item")) \
        if rng.random() < 0.6 else invented(rng).lower()
    name = f"{verb}_{noun}"
    keys = rng.sample(("id", "name", "title", "count", "color", "size", "path", "level", "mode", "user", "date", "speed", "target", "kind", "value", "key", "enabled"), rng.randrange(1, 4))
    arguments: dict[str, Any] = {}
    for key in keys:
        if key in ("id", "count", "size", "level", "speed"):
            arguments[key] = rng.randrange(1, 1000)
        elif key == "enabled":
            arguments[key] = rng.random() < 0.5
        else:
            arguments[key] = rng.choice((person(rng), rng.choice(COLOURS), rng.choice(FRUITS), invented(rng).lower(), str(rng.randrange(100)) + "a"))
    types = {bool: B, int: I, str: S}
    schema = {"type": "object", "properties": {key: {"type": types[type(value)]} for key, value in arguments.items()}, "required": keys}
    tool: Tool = {"type": "function", "function": {"name": name, "description": f"{verb.capitalize()} a {noun}", "parameters": schema}}
    shown = {key: to_json(value) if isinstance(value, bool) else value for key, value in arguments.items()}
    q = say(rng, ("Call {f} with {p}.", "Use {f} with {p}.", "{v} the {n} with {p}.", "Please {v} a {n}: {p}", "Run {f}: {p}", "{v} {n} {p}"), f=name, v=verb, n=noun,
            p=listing([f"{key} {value}" if rng.random() < 0.6 else f"{key}={value}" for key, value in shown.items()]))
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
    """Functions are there, but the question does not need them."""
    made = rng.choice((talk, greeting, capital, free))(rng)
    picked = rng.sample([k for k in KINDS if k.use not in (lookup,)], rng.randint(1, 3))
    return Dialogue("tool_none", made.turns, tuple(declare(rng, k)[0] for k in picked), made.keys, Expect("text", made.turns[-1].content))


def failed(rng: random.Random) -> Dialogue:
    """The function reports an error."""
    kind = rng.choice(KINDS)
    tool, use, call = settle(rng, kind)
    text = rng.choice(("not found", "timeout", "no connection", "unknown", "access denied", "invalid input"))
    turns = (Turn("user", use.question), Turn("assistant", calls=(call,)), Turn("tool", rng.choice((f"error: {text}", to_json({"error": text})))),
             Turn("assistant", f"I am sorry, that did not work: {text}."))
    return Dialogue("tool_answer", turns, with_tools(rng, tool, kind), (use.question,), Expect("text", text))


MAKERS = ((called, 10), (again, 3), (several, 2), (missing, 1), (free_form, 6), (unneeded, 3), (failed, 1))
