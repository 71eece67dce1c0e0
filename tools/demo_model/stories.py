"""Short stories and verses from a small grammar."""

from __future__ import annotations

import random

from .dialogue import Dialogue, exchange, say
from .words import ANIMALS, COLOURS, FRUITS, NAMES

HEROES = (
    "girl",
    "boy",
    "robot",
    "dragon",
    "fisherman",
    "gardener",
    "queen",
    "king",
    "baker",
    "wizard",
    "farmer",
    "sailor",
    "painter",
    "knight",
    "princess",
    "prince",
)
TRAITS = (
    "brave",
    "small",
    "curious",
    "kind",
    "clever",
    "shy",
    "old",
    "young",
    "lonely",
    "cheerful",
    "quiet",
    "friendly",
    "tired",
    "hungry",
)
PLACES = (
    "in a small village",
    "near a big forest",
    "by the sea",
    "on a high mountain",
    "in an old castle",
    "in a quiet valley",
    "on a little island",
    "at the edge of a town",
    "beside a deep lake",
    "in a house with a red roof",
)
THINGS = (
    "a golden key",
    "a lost map",
    "an old book",
    "a silver bell",
    "a strange seed",
    "a little lamp",
    "a blue stone",
    "a broken clock",
    "a letter",
    "a music box",
)
OPENINGS = (
    "Once upon a time, there was a {t} {h} named {n} who lived {p}.",
    "{n} was a {t} {h} who lived {p}.",
    "Long ago, a {t} {h} called {n} lived {p}.",
    "There was once a {t} {h}. The name of the {h} was {n}, and {n} lived {p}.",
)
STARTS = (
    "One morning, {n} found {x} under a tree.",
    "One day, {n} found {x} in the garden.",
    "One evening, {n} saw {x} on the road.",
    "One rainy day, {n} found {x} in a box.",
)
WISHES = (
    "{n} wanted to know where it came from.",
    '"Who has lost this?" said {n}.',
    "{n} wondered what it was for.",
    "{n} decided to give it back to its owner.",
)
TROUBLES = (
    "On the way, a storm came up and the path was gone.",
    "But the bridge over the river was broken.",
    "But soon it was dark, and {n} was lost.",
    "But a big stone blocked the way.",
    "On the way, {n} became very tired and cold.",
)
HELPERS = (
    'Then a {c} {a} came and said, "I will help you."',
    "A {c} {a} heard this and showed the way.",
    "Luckily, a friendly {a} was near and offered its help.",
    "Then {n} met a {a} who knew the place well.",
)
THANKS = (
    "{n} shared a {f} with the {a}, and they became friends.",
    '"Thank you!" said {n}, and gave the {a} a {f}.',
    "They walked together and talked all the way.",
)
ENDS = (
    "In the end, {x} belonged to an old woman, who smiled and thanked them.",
    "At last they found the owner, who was very happy.",
    "At the end of the road there was a door, and behind it a garden full of light.",
    "At last {n} was home again, and everyone was glad.",
)
MORALS = (
    "From that day on, {n} was never alone.",
    "And {n} learned that a friend is worth more than gold.",
    "They lived happily ever after.",
    "And if you listen at night, you can still hear them laugh.",
    "{n} slept well that night.",
)
RHYMES = (
    (
        ("The {a} is here, the {a} is there,", "it looks around without a care."),
        ("It likes to play, it likes to run,", "and sleeps at noon beneath the sun."),
    ),
    (
        ("I saw a {c} {a} today,", "it smiled at me and ran away."),
        ("I called it back, it would not hear,", "but now I know that it was near."),
    ),
    (
        ("A little {a} sat by the sea,", "and shared a {f} there with me."),
        ("The waves came in, the waves went out,", "and that is what this song's about."),
    ),
)


def put(text: str, slots: dict[str, str]) -> str:
    for name, value in slots.items():
        text = text.replace("{" + name + "}", value)
    text = text.replace(" a a", " an a").replace(" a e", " an e").replace(" a i", " an i").replace(" a o", " an o")
    return text


def story(rng: random.Random) -> Dialogue:
    topic, subject = "", ""
    slots = {
        "n": rng.choice(NAMES),
        "t": rng.choice(TRAITS),
        "p": rng.choice(PLACES),
        "x": rng.choice(THINGS),
        "c": rng.choice(COLOURS),
        "a": rng.choice(ANIMALS),
        "f": rng.choice(FRUITS),
        "h": rng.choice(HEROES) if rng.random() < 0.6 else rng.choice(ANIMALS),
    }
    dice = rng.random()
    if dice < 0.45:
        topic = slots["h"]
        subject = f"a {topic}" if topic[0] not in "aeiou" else f"an {topic}"
    elif dice < 0.65:
        subject = slots["n"]
    elif dice < 0.85:
        subject = (
            f"a {slots['h']} named {slots['n']}"
            if slots["h"][0] not in "aeiou"
            else f"an {slots['h']} named {slots['n']}"
        )
    if subject:
        q = say(
            rng,
            (
                "Tell me a story about {s}.",
                "Write a short story about {s}.",
                "Can you tell a story about {s}?",
                "story about {s}",
                "Make up a story about {s}.",
                "I want a story about {s}.",
                "Write a story about {s}",
            ),
            s=subject,
        )
    else:
        q = say(
            rng,
            (
                "Tell me a story.",
                "Write a short story.",
                "Can you tell me a story?",
                "story please",
                "Make up a story.",
                "I want to hear a story.",
                "Another story!",
            ),
        )
    parts = [OPENINGS, STARTS, WISHES, TROUBLES, HELPERS, THANKS, ENDS, MORALS]
    if rng.random() < 0.3:
        del parts[2]
    if rng.random() < 0.3:
        parts.remove(THANKS)
    return exchange("story", q, " ".join(put(rng.choice(part), slots) for part in parts))


def verse(rng: random.Random) -> Dialogue:
    slots = {"c": rng.choice(COLOURS), "a": rng.choice(ANIMALS), "f": rng.choice(FRUITS)}
    q = say(
        rng,
        (
            "Write a poem about a {a}.",
            "Tell me a poem about a {a}.",
            "A short poem about a {a}, please.",
            "poem about a {a}",
            "Write a rhyme about a {a}",
        ),
        a=slots["a"],
    )
    first, second = rng.choice(RHYMES)
    return exchange("story", q, put("\n".join((*first, *second)), slots))


MAKERS = ((story, 5), (verse, 1))
