"""Greetings, who the model is, what it does not do, small talk, and remembering what the user said."""

from __future__ import annotations

import random

from .dialogue import Dialogue, Expect, Turn, exchange, join, say
from .smalltalk import SMALL_TALK
from .talk import BEYOND, HARM, JOKES, NO_HARM, NO_SELF, RIDDLES, SELF, SYSTEMS, TALK
from .told import TOLD
from .words import ANIMALS, CITIES, COLOURS, FOODS, FRUITS, JOBS, LANGUAGES, NAMES, SPORTS, invented, person, place


def talk(rng: random.Random) -> Dialogue:
    questions, answers = rng.choice(TALK + SMALL_TALK)
    return exchange("chat", say(rng, questions), rng.choice(answers))


def greeting(rng: random.Random) -> Dialogue:
    questions, answers = TALK[0]
    return exchange("chat", say(rng, questions), rng.choice(answers))


def identity(rng: random.Random) -> Dialogue:
    questions, answers = rng.choice(TALK[7:15])
    return exchange("identity", say(rng, questions), answers[0], how="text", value=answers[0])


def joke(rng: random.Random) -> Dialogue:
    if rng.random() < 0.7:
        q = say(
            rng,
            (
                "Tell me a joke.",
                "Do you know a joke?",
                "Make me laugh.",
                "joke please",
                "Another joke!",
                "Say something funny",
                "Give me a joke",
            ),
        )
        return exchange("chat", q, rng.choice(JOKES))
    q = say(rng, ("Tell me a riddle.", "Do you know a riddle?", "riddle please", "Give me a riddle"))
    return exchange("chat", q, rng.choice(RIDDLES))


def refusal(rng: random.Random) -> Dialogue:
    if rng.random() < 0.1:
        return exchange("refusal", say(rng, SELF), NO_SELF, how="text", value="not alone")
    return exchange("refusal", say(rng, HARM), NO_HARM, how="text", value=NO_HARM)


def beyond(rng: random.Random) -> Dialogue:
    questions, answer = rng.choice(BEYOND)
    q = say(
        rng,
        questions,
        c=rng.choice(CITIES),
        x=invented(rng),
        a=rng.choice(ANIMALS),
        l=rng.choice(LANGUAGES),
        n=rng.choice(NAMES),
    )
    return exchange("unknown", q, answer, how="text", value=answer)


def colour(rng: random.Random) -> str:
    return rng.choice(COLOURS)


def value_of(rng: random.Random, what: str) -> str:
    if what in ("name", "friend"):
        return person(rng)
    if what in ("pet", "cat"):
        return invented(rng) if rng.random() < 0.5 else rng.choice(NAMES)
    if what == "city":
        return place(rng)
    if what == "age":
        return str(rng.randrange(5, 95))
    if what == "number":
        return str(rng.randrange(1, 1000))
    pools = {"colour": COLOURS, "food": FOODS, "animal": ANIMALS, "job": JOBS, "sport": SPORTS}
    return (
        rng.choice(pools[what])
        if what in pools
        else invented(rng).lower()
        if rng.random() < 0.5
        else rng.choice(FRUITS)
    )


def memory(rng: random.Random, between: tuple[Dialogue, ...] = ()) -> Dialogue:
    """Things told, other talk, and questions about them; sometimes about something that was not told."""
    chosen = rng.sample(TOLD, rng.randrange(1, 4))
    values = [value_of(rng, entry[0]) for entry in chosen]
    parts = [
        exchange("memory", say(rng, tells, v=v), reply.replace("{v}", v))
        for (_, tells, reply, _, _), v in zip(chosen, values, strict=True)
    ]
    order = list(range(len(chosen)))
    rng.shuffle(order)
    asked = [
        exchange("memory", say(rng, chosen[i][3]), chosen[i][4].replace("{v}", values[i]), how="text", value=values[i])
        for i in order
    ]
    if rng.random() < 0.25:
        other = rng.choice([entry for entry in TOLD if entry not in chosen])
        asked.append(
            exchange(
                "memory", say(rng, other[3]), "I do not know: you have not told me.", how="text", value="I do not know"
            )
        )
    if rng.random() < 0.15:
        i = order[0]
        new = value_of(rng, chosen[i][0])
        asked += [
            exchange("memory", say(rng, chosen[i][1], v=new), chosen[i][2].replace("{v}", new)),
            exchange("memory", say(rng, chosen[i][3]), chosen[i][4].replace("{v}", new), how="text", value=new),
        ]
    return join("memory", [*parts, *between, *asked])


def untold(rng: random.Random) -> Dialogue:
    entry = rng.choice(TOLD)
    return exchange(
        "unknown", say(rng, entry[3]), "I do not know: you have not told me.", how="text", value="I do not know"
    )


def told_by_system(rng: random.Random) -> Dialogue:
    """What the system message says about the user."""
    entry = rng.choice(TOLD[:8])
    v = value_of(rng, entry[0])
    facts = {
        "name": f"The user's name is {v}.",
        "colour": f"The user's favourite colour is {v}.",
        "food": f"The user's favourite food is {v}.",
        "animal": f"The user's favourite animal is the {v}.",
        "city": f"The user lives in {v}.",
        "age": f"The user is {v} years old.",
        "number": f"The user's favourite number is {v}.",
        "job": f"The user works as a {v}.",
    }
    system = f"{rng.choice(SYSTEMS)} {facts[entry[0]]}"
    turns = (Turn("system", system), Turn("user", say(rng, entry[3])), Turn("assistant", entry[4].replace("{v}", v)))
    return Dialogue("memory", turns, expect=Expect("text", v))


MAKERS = (
    (talk, 6),
    (greeting, 2),
    (identity, 3),
    (joke, 1),
    (refusal, 3),
    (beyond, 4),
    (memory, 6),
    (untold, 1),
    (told_by_system, 1),
)
