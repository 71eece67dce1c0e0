"""JSON on demand: objects with given keys, arrays, and facts taken out of a sentence. Answers are one line of JSON."""

from __future__ import annotations

import random
from typing import Any

from .dialogue import Dialogue, exchange, listing, say, to_json
from .words import ANIMALS, CITIES, COLOURS, FOODS, FRUITS, JOBS, SPORTS, invented, person, place

Field = tuple[str, Any]
EXTRA_KEYS = (
    "id",
    "title",
    "price",
    "count",
    "score",
    "size",
    "weight",
    "year",
    "month",
    "level",
    "status",
    "type",
    "label",
    "owner",
    "country",
    "street",
    "phone",
    "email",
    "length",
    "width",
    "height",
    "speed",
    "rank",
    "team",
    "language",
    "brand",
    "model",
    "key",
    "value",
    "code",
)


def field(rng: random.Random) -> Field:
    """A key and a value that fits."""
    kind = rng.randrange(12)
    if kind == 0:
        return rng.choice(("name", "user", "first_name", "person")), person(rng)
    if kind == 1:
        return "age", rng.randrange(1, 100)
    if kind == 2:
        return rng.choice(("city", "town", "place")), place(rng)
    if kind == 3:
        return rng.choice(("color", "colour")), rng.choice(COLOURS)
    if kind == 4:
        return rng.choice(("animal", "pet")), rng.choice(ANIMALS)
    if kind == 5:
        return rng.choice(("job", "profession")), rng.choice(JOBS)
    if kind == 6:
        return rng.choice(("food", "dish")), rng.choice(FOODS)
    if kind == 7:
        return rng.choice(("sport", "hobby")), rng.choice(SPORTS)
    if kind == 8:
        return rng.choice(("active", "happy", "admin", "ok", "open", "done")), rng.random() < 0.5
    if kind == 9:
        return rng.choice(("fruit", "item", "product")), rng.choice(FRUITS)
    key = rng.choice(EXTRA_KEYS) if rng.random() < 0.8 else invented(rng).lower()
    return key, rng.randrange(1000) if rng.random() < 0.6 else invented(rng).lower()


def fields(rng: random.Random, least: int = 1, most: int = 5) -> list[Field]:
    out: dict[str, Any] = {}
    wanted = rng.randint(least, most)
    while len(out) < wanted:
        key, value = field(rng)
        out.setdefault(key, value)
    return list(out.items())


def shown(value: Any) -> str:
    """A value as people write it in a sentence."""
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def reply(question: str, value: Any) -> Dialogue:
    return exchange("json", question, to_json(value), how="json", value=value)


def keyed(rng: random.Random) -> Dialogue:
    """Keys and values given."""
    pairs = fields(rng)
    keys = [key if rng.random() < 0.8 else f'"{key}"' for key, _ in pairs]
    style = rng.randrange(5)
    if style == 0:
        q = say(
            rng,
            (
                "Give me a JSON object with {p}.",
                "Write JSON with {p}.",
                "Make a JSON object: {p}",
                "JSON with {p}",
                "Create a json object with {p}",
                "Return a JSON object with {p}.",
            ),
            p=listing([f"{k} {shown(v)}" for k, (_, v) in zip(keys, pairs, strict=True)]),
        )
    elif style == 1:
        q = say(
            rng,
            (
                "Convert to JSON: {p}",
                "Turn this into JSON: {p}",
                "As JSON: {p}",
                "{p} as json",
                "Make JSON from {p}",
                "Write as JSON: {p}",
            ),
            p=rng.choice(("; ", ", ")).join(f"{k}={shown(v)}" for k, v in pairs),
        )
    elif style == 2:
        q = say(
            rng,
            (
                "Convert to JSON: {p}",
                "Turn this into JSON: {p}",
                "As JSON please: {p}",
                "Format as JSON: {p}",
                "json: {p}",
            ),
            p=rng.choice((", ", "\n", "; ")).join(f"{k}: {shown(v)}" for k, v in pairs),
        )
    elif style == 3:
        q = say(
            rng,
            (
                "Give me JSON with the key{s} {k} and the value{s} {v}.",
                "Write a JSON object. Key{s}: {k}. Value{s}: {v}.",
                "JSON object, key{s} {k}, value{s} {v}",
            ),
            s="s" if len(pairs) > 1 else "",
            k=listing(keys),
            v=listing([shown(v) for _, v in pairs]),
        )
    else:
        q = say(
            rng,
            ("Reply with a JSON object that has {p}.", "Answer only in JSON: {p}", "Reply only with JSON. {p}"),
            p=listing([f"{k} set to {shown(v)}" for k, (_, v) in zip(keys, pairs, strict=True)]),
        )
    return reply(q, dict(pairs))


def extract(rng: random.Random) -> Dialogue:
    """Facts of a sentence under given keys; what the sentence does not say is null."""
    known: dict[str, Any] = {
        "name": person(rng),
        "age": rng.randrange(5, 90),
        "city": place(rng),
        "job": rng.choice(JOBS),
    }
    style = rng.randrange(6)
    if style == 0:
        text = f"{known['name']} is {known['age']} years old and lives in {known['city']}."
        has = ["name", "age", "city"]
    elif style == 1:
        text = f"{known['name']} works as a {known['job']} in {known['city']}."
        has = ["name", "job", "city"]
    elif style == 2:
        text = f"My name is {known['name']}, I am {known['age']} and I work as a {known['job']}."
        has = ["name", "age", "job"]
    elif style == 3:
        text = f"{known['name']}, {known['age']}, from {known['city']}, {known['job']}"
        has = ["name", "age", "city", "job"]
    elif style == 4:
        text = f"{known['name']} lives in {known['city']}."
        has = ["name", "city"]
    else:
        text = f"I am {known['name']} and I am {known['age']} years old."
        has = ["name", "age"]
    wanted = list(has)
    rng.shuffle(wanted)
    wanted = wanted[: rng.randint(1, len(wanted))]
    if rng.random() < 0.25:
        wanted.append(rng.choice([key for key in ("name", "age", "city", "job", "email", "phone") if key not in has]))
    q = say(
        rng,
        (
            "{t} Give me {k} as JSON.",
            "Extract {k} as JSON: {t}",
            "{t} JSON with {k}, please.",
            "Give me a JSON object with {k} for: {t}",
            "From this text, return JSON with {k}: {t}",
            "Extract the {k} from this text as JSON: {t}",
            "{t}\nReturn JSON with the keys {k}.",
        ),
        t=text,
        k=listing(wanted),
    )
    return reply(q, {key: known[key] if key in has else None for key in wanted})


def array(rng: random.Random) -> Dialogue:
    kind = rng.randrange(4)
    if kind == 0:
        items = rng.sample(rng.choice((FRUITS, COLOURS, ANIMALS, CITIES)), rng.randrange(2, 7))
        q = say(
            rng,
            (
                "Write {w} as a JSON array.",
                "Make a JSON list of {w}.",
                "JSON array: {w}",
                "Turn {w} into a JSON array.",
                "As a JSON list: {w}",
            ),
            w=rng.choice((listing(items), ", ".join(items))),
        )
        return reply(q, items)
    if kind == 1:
        a = rng.randrange(50)
        b = a + rng.randrange(2, 10)
        q = say(
            rng,
            (
                "Write the numbers from {a} to {b} as a JSON array.",
                "JSON array of the numbers {a} to {b}",
                "Give me a JSON list with the numbers from {a} to {b}.",
            ),
            a=a,
            b=b,
        )
        return reply(q, list(range(a, b + 1)))
    if kind == 2:
        items = rng.sample(range(100), rng.randrange(2, 7))
        q = say(
            rng,
            ("Write {w} as a JSON array.", "JSON array: {w}", "Make a JSON list of {w}.", "Put {w} into a JSON array."),
            w=", ".join(map(str, items)),
        )
        return reply(q, items)
    items = rng.sample(rng.choice((FRUITS, COLOURS, ANIMALS)), rng.randrange(2, 5))
    key = rng.choice(("items", "list", "names", "values", "words", "things"))
    q = say(
        rng,
        (
            "JSON object with key {k} and the list {w}.",
            "Give me JSON with the list {w} under the key {k}.",
            "Make JSON: {k} is the list {w}",
        ),
        k=key,
        w=", ".join(items),
    )
    return reply(q, {key: items})


def computed(rng: random.Random) -> Dialogue:
    a, b = rng.randrange(1, 50), rng.randrange(1, 50)
    key = rng.choice(("result", "sum", "answer", "value", "total"))
    q = say(
        rng,
        (
            "Give me {a} + {b} as JSON with the key {k}.",
            "What is {a} + {b}? Answer as JSON with the key {k}.",
            "JSON with {k} = {a} + {b}",
            "Compute {a} + {b} and return JSON with key {k}.",
        ),
        a=a,
        b=b,
        k=key,
    )
    return reply(q, {key: a + b})


def nested(rng: random.Random) -> Dialogue:
    outer = rng.choice(("user", "person", "item", "data", "car", "order", "config", "address"))
    pairs = fields(rng, 1, 3)
    q = say(
        rng,
        (
            "JSON object with key {o} that holds an object with {p}.",
            "Give me JSON: {o} is an object with {p}.",
            "Make nested JSON: {o} contains {p}.",
        ),
        o=outer,
        p=listing([f"{k} {shown(v)}" for k, v in pairs]),
    )
    return reply(q, {outer: dict(pairs)})


def people(rng: random.Random) -> Dialogue:
    rows = [{"name": person(rng), "age": rng.randrange(5, 90)} for _ in range(rng.randrange(2, 4))]
    q = say(
        rng,
        (
            "JSON array with name and age of {p}.",
            "List these people as a JSON array with name and age: {p}",
            "Make a JSON array of objects with name and age for {p}",
        ),
        p=listing([f"{row['name']} ({row['age']})" for row in rows]),
    )
    return reply(q, rows)


MAKERS = ((keyed, 8), (extract, 6), (array, 3), (computed, 1), (nested, 2), (people, 1))
