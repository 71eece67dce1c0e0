"""Functions that a model may be given: what people ask, the arguments, results, and answers made of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .arithmetic import operands
from .dialogue import say, to_json
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
    q = say(
        rng,
        (
            "What is the weather in {c}?",
            "How is the weather in {c}?",
            "What's the weather like in {c} today?",
            "weather in {c}",
            "Is it raining in {c}?",
            "How warm is it in {c}?",
            "Do I need an umbrella in {c}?",
            "Tell me the weather for {c}.",
            "{c} weather?",
            "Will it be cold in {c} today?",
            "What is the temperature in {c}?",
        ),
        c=c,
    )
    result = rng.choice(
        (to_json({"temperature": t, "sky": sky}), to_json({"city": c, "temp_c": t, "condition": sky}), f"{t} °C, {sky}")
    )
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
    q = say(
        rng,
        (
            "What is {e}?",
            "Calculate {e}.",
            "{e}",
            "How much is {e}?",
            "Compute {e}",
            "Use the calculator: {e}",
            "{e} = ?",
        ),
        e=shown,
    )
    return q, [text], rng.choice((str(value), to_json({"result": value}))), f"{text} = {value}."


def clock(rng: random.Random) -> tuple[str, list[Any], str, str]:
    c, t = place(rng), f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    q = say(
        rng,
        (
            "What time is it in {c}?",
            "What's the time in {c}?",
            "Tell me the time in {c}.",
            "time in {c}?",
            "Current time in {c}",
            "How late is it in {c}?",
        ),
        c=c,
    )
    return q, [c], rng.choice((t, to_json({"time": t}), to_json({"city": c, "time": t}))), f"It is {t} in {c}."


def today(rng: random.Random) -> tuple[str, list[Any], str, str]:
    d = f"{rng.randrange(2020, 2031)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"
    q = say(
        rng,
        ("What is the date today?", "What's today's date?", "Which date is it?", "current date?", "What day is today?"),
    )
    return q, [], rng.choice((d, to_json({"date": d}))), f"Today is {d}."


def lookup(rng: random.Random) -> tuple[str, list[Any], str, str]:
    x = invented(rng) if rng.random() < 0.6 else rng.choice(ANIMALS + FRUITS)
    text = rng.choice(
        (
            f"{x} is a small town in the north.",
            f"{x} is a plant with {rng.choice(COLOURS)} flowers.",
            f"{x} was founded in {rng.randrange(1500, 2000)}.",
            f"{x} has {rng.randrange(100, 90000)} inhabitants.",
            f"{x} is a {rng.choice(COLOURS)} animal of the forest.",
        )
    )
    q = say(
        rng,
        (
            "Who or what is {x}?",
            "Look up {x}.",
            "Search for {x}.",
            "What is {x}?",
            "Find information about {x}",
            "Tell me about {x}.",
            "search {x}",
            "What do you find about {x}?",
            "Look for {x} please",
        ),
        x=x,
    )
    return q, [x], rng.choice((text, to_json({"text": text}))), text


def timer(rng: random.Random) -> tuple[str, list[Any], str, str]:
    n = rng.randrange(1, 91)
    q = say(
        rng,
        (
            "Set a timer for {n} minutes.",
            "Start a timer of {n} minutes.",
            "timer {n} minutes",
            "Wake me in {n} minutes.",
            "Please set a {n} minute timer",
        ),
        n=n,
    )
    return q, [n], rng.choice(("ok", to_json({"status": "ok"}), "done")), f"The timer is set for {n} minutes."


def reminder(rng: random.Random) -> tuple[str, list[Any], str, str]:
    what = (
        rng.choice(("call", "visit", "write to", "meet", "pay", "help")) + " " + person(rng)
        if rng.random() < 0.6
        else f"buy {rng.choice(FOODS + FRUITS)}"
    )
    t = f"{rng.randrange(6, 23)}:{rng.choice(('00', '15', '30', '45'))}"
    q = say(
        rng,
        (
            "Remind me to {w} at {t}.",
            "Set a reminder for {t}: {w}",
            "At {t}, remind me to {w}.",
            "I must {w} at {t}, remind me",
            "reminder {w} at {t}",
        ),
        w=what,
        t=t,
    )
    return q, [what, t], rng.choice(("ok", to_json({"status": "ok"}))), f"I will remind you at {t} to {what}."


def currency(rng: random.Random) -> tuple[str, list[Any], str, str]:
    names = {"USD": "dollars", "EUR": "euros", "GBP": "pounds", "JPY": "yen", "CHF": "francs"}
    a, b = rng.sample(list(names), 2)
    n, value = rng.randrange(1, 1000), rng.randrange(1, 2000)
    coded = rng.random() < 0.5
    q = say(
        rng,
        (
            "Convert {n} {a} to {b}.",
            "How much is {n} {a} in {b}?",
            "{n} {a} in {b}",
            "What are {n} {a} in {b}?",
            "change {n} {a} into {b}",
        ),
        n=n,
        a=a if coded else names[a],
        b=b if coded else names[b],
    )
    return (
        q,
        [n, a, b],
        rng.choice((str(value), to_json({"amount": value, "currency": b}))),
        f"{n} {a} are {value} {b}.",
    )


def translate(rng: random.Random) -> tuple[str, list[Any], str, str]:
    x, lang, y = rng.choice(ANIMALS + FRUITS + COLOURS), rng.choice(LANGUAGES), invented(rng).lower()
    q = say(
        rng,
        (
            "Translate {x} to {l}.",
            "What is {x} in {l}?",
            "How do you say {x} in {l}?",
            "translate {x} into {l}",
            "{x} in {l}?",
        ),
        x=x,
        l=lang,
    )
    return q, [x, lang], rng.choice((y, to_json({"translation": y}))), f"In {lang}, {x} is {y}."


def message(rng: random.Random) -> tuple[str, list[Any], str, str]:
    n = person(rng)
    text = rng.choice(
        (
            "I am late",
            "see you soon",
            "happy birthday",
            "call me back",
            "dinner is ready",
            "good luck",
            "the train is late",
            "I will be there at noon",
            "thank you",
        )
    )
    q = say(
        rng,
        (
            "Send a message to {n}: {t}",
            "Tell {n}: {t}",
            "Write to {n}: {t}",
            "Message {n} that says {t}",
            "text {n} {t}",
        ),
        n=n,
        t=text,
    )
    return q, [n, text], rng.choice(("sent", to_json({"status": "sent"}), "ok")), f"I sent your message to {n}."


def light(rng: random.Random) -> tuple[str, list[Any], str, str]:
    room, on = (
        rng.choice(("kitchen", "bedroom", "bathroom", "hall", "garage", "office", "living room", "garden")),
        rng.random() < 0.5,
    )
    word = "on" if on else "off"
    q = say(
        rng,
        (
            "Turn {w} the light in the {r}.",
            "Switch {w} the {r} light.",
            "Lights {w} in the {r}",
            "Please turn the {r} light {w}.",
            "{r} light {w}",
        ),
        w=word,
        r=room,
    )
    return q, [room, on], rng.choice(("ok", to_json({"status": "ok"}), "done")), f"The light in the {room} is {word}."


def dice(rng: random.Random) -> tuple[str, list[Any], str, str]:
    n = rng.choice((4, 6, 8, 10, 12, 20, 100))
    value = rng.randrange(1, n + 1)
    q = say(
        rng,
        (
            "Roll a die with {n} sides.",
            "Roll a {n}-sided die.",
            "Throw a d{n}",
            "roll d{n}",
            "Give me a random number from 1 to {n}.",
        ),
        n=n,
    )
    return q, [n], rng.choice((str(value), to_json({"value": value}))), f"You rolled a {value}."


def price(rng: random.Random) -> tuple[str, list[Any], str, str]:
    symbol = "".join(rng.choice("ABCDEFGHIKLMNOPRSTUVXYZ") for _ in range(rng.randrange(2, 5)))
    value = rng.randrange(1, 900)
    q = say(
        rng,
        (
            "What is the price of {s}?",
            "Stock price of {s}?",
            "How much is {s} worth?",
            "price {s}",
            "What does a share of {s} cost?",
        ),
        s=symbol,
    )
    return (
        q,
        [symbol],
        rng.choice((str(value), to_json({"price": value}), to_json({"symbol": symbol, "price": value}))),
        f"The price of {symbol} is {value}.",
    )


def music(rng: random.Random) -> tuple[str, list[Any], str, str]:
    n = person(rng) if rng.random() < 0.4 else invented(rng)
    q = say(
        rng, ("Play {n}.", "Play some music by {n}.", "I want to hear {n}.", "Put on {n}", "play songs by {n}"), n=n
    )
    return q, [n], rng.choice(("playing", to_json({"status": "playing"}), "ok")), f"Now playing {n}."


def table(rng: random.Random) -> tuple[str, list[Any], str, str]:
    n, p, t = rng.randrange(1, 12), invented(rng), f"{rng.randrange(11, 23)}:{rng.choice(('00', '30'))}"
    q = say(
        rng,
        (
            "Book a table for {n} at {p} at {t}.",
            "Reserve a table at {p} for {n} people at {t}.",
            "I want to eat at {p} at {t}, we are {n}.",
            "table for {n}, {p}, {t}",
        ),
        n=n,
        p=p,
        t=t,
    )
    return (
        q,
        [p, n, t],
        rng.choice(("booked", to_json({"status": "booked"}), "ok")),
        f"I booked a table for {n} at {p} at {t}.",
    )


TEXT, WHOLE, NUMBER, FLAG = "string", "integer", "number", "boolean"
KINDS = (
    Kind(
        ("get_weather", "weather", "current_weather", "get_current_weather", "fetch_weather"),
        ("Get the weather of a city", "Weather now", "Current weather at a place"),
        ((("city", "location", "place"), TEXT, "name of the city", True),),
        weather,
    ),
    Kind(
        ("calculator", "calculate", "calc", "evaluate", "compute"),
        ("Evaluate a sum", "Calculator", "Work out an arithmetic expression"),
        ((("expression", "expr", "input", "formula"), TEXT, "such as 2 + 3", True),),
        calculator,
    ),
    Kind(
        ("get_time", "clock", "current_time", "get_current_time", "time_in"),
        ("Get the time in a city", "Clock", "The time at a place"),
        ((("city", "location", "place", "timezone"), TEXT, "name of the city", True),),
        clock,
    ),
    Kind(("get_date", "today", "current_date"), ("Get today's date", "The date of today"), (), today),
    Kind(
        ("lookup", "search", "search_web", "wiki", "find"),
        ("Look something up", "Search the web", "Search an encyclopedia"),
        ((("query", "term", "q", "name", "topic"), TEXT, "what to look for", True),),
        lookup,
    ),
    Kind(
        ("set_timer", "timer", "start_timer"),
        ("Set a timer", "Start a countdown"),
        ((("minutes", "duration", "length"), WHOLE, "in minutes", True),),
        timer,
    ),
    Kind(
        ("add_reminder", "set_reminder", "remind"),
        ("Add a reminder", "Remind the user"),
        ((("text", "what", "task"), TEXT, "what to do", True), (("time", "at", "when"), TEXT, "when", True)),
        reminder,
    ),
    Kind(
        ("convert_currency", "exchange", "currency"),
        ("Convert money", "Exchange rates"),
        (
            (("amount", "value"), NUMBER, "how much", True),
            (("from", "source", "from_currency"), TEXT, "currency code", True),
            (("to", "target", "to_currency"), TEXT, "currency code", True),
        ),
        currency,
    ),
    Kind(
        ("translate", "translate_text", "translator"),
        ("Translate a text", "Translator"),
        (
            (("text", "word", "phrase"), TEXT, "what to translate", True),
            (("language", "target", "to"), TEXT, "target language", True),
        ),
        translate,
    ),
    Kind(
        ("send_message", "send_text", "message"),
        ("Send a message", "Write to a person"),
        (
            (("to", "recipient", "person"), TEXT, "who gets it", True),
            (("text", "message", "body"), TEXT, "the message", True),
        ),
        message,
    ),
    Kind(
        ("set_light", "switch_light", "light"),
        ("Switch a light", "Turn a light on or off"),
        ((("room", "place"), TEXT, "the room", True), (("on", "state", "enabled"), FLAG, "whether it is on", True)),
        light,
    ),
    Kind(
        ("roll_dice", "roll", "random_number"),
        ("Roll a die", "Random number"),
        ((("sides", "max", "n"), WHOLE, "number of sides", True),),
        dice,
    ),
    Kind(
        ("get_price", "stock_price", "quote"),
        ("Get the price of a share", "Stock price"),
        ((("symbol", "ticker"), TEXT, "symbol of the share", True),),
        price,
    ),
    Kind(
        ("play_music", "play", "player"),
        ("Play music", "Music player"),
        ((("artist", "name", "query"), TEXT, "what to play", True),),
        music,
    ),
    Kind(
        ("book_table", "reserve_table", "reservation"),
        ("Book a table", "Reserve a table at a restaurant"),
        (
            (("restaurant", "place", "where"), TEXT, "name of the restaurant", True),
            (("people", "guests", "seats"), WHOLE, "number of people", True),
            (("time", "at", "when"), TEXT, "when", True),
        ),
        table,
    ),
)
