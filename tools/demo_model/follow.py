"""Second questions that lean on the first: more of the same, sums that go on, doubts, and how it was worked out."""

from __future__ import annotations

import random

from .arithmetic import answer_sum, keys
from .dialogue import Dialogue, exchange, join, say
from .measures import ABOUT, ASK, EXACT, amount, conversion, spelled, unit

AGAIN = (
    "And {n}?",
    "and {n}",
    "What about {n}?",
    "what about {n} {u}?",
    "And {n} {u}?",
    "How about {n}?",
    "and in {n} {u}?",
    "{n}?",
    "Now {n} {u}",
    "same for {n}",
)
ON = {
    "+": ("And plus {n}?", "plus {n}", "Now add {n}.", "Add {n} to that.", "and {n} more?", "+ {n}"),
    "-": ("And minus {n}?", "minus {n}", "Now take away {n}.", "Subtract {n} from that.", "- {n}"),
    "×": ("Times {n}?", "times {n}", "Multiply that by {n}.", "now times {n}", "* {n}"),
}
TWICE = ("Double it.", "double that", "And twice that?", "times two")
SURE = ("Are you sure?", "really?", "Sure?", "Is that right?", "Is that correct?", "are you certain?", "you sure?")
HOW = (
    "How did you get that?",
    "How do you know?",
    "Why?",
    "why is that",
    "Explain that.",
    "How come?",
    "Show me the steps",
)


def more_units(rng: random.Random) -> Dialogue:
    """A conversion, and the same for other numbers."""
    exact = rng.random() < 0.6
    u, v, factor = rng.choice(EXACT) if exact else rng.choice(ABOUT)
    about = not exact and (u, v) != ABOUT[0][:2]
    u, v = spelled(rng, u, v)
    parts = []
    for i in range(rng.randrange(2, 4)):
        n = rng.randrange(1, 13) if exact else amount(rng)
        answer, end = conversion(n, str(factor), u, v, about)
        q = say(rng, AGAIN if i else ASK, n=n, u=unit(u, n), v=v)
        parts.append(exchange("follow", q, answer, how="end", value=end))
    return join("follow", parts)


def first_sum(rng: random.Random) -> tuple[Dialogue, int]:
    a, b, op = rng.randrange(1, 100), rng.randrange(1, 100), rng.choice("++-")
    answer, end = answer_sum(a, op, b)
    word = "plus" if op == "+" else "minus"
    q = say(rng, ("What is {a} {o} {b}?", "{a} {o} {b}"), a=a, b=b, o=rng.choice((op, word)))
    return exchange("follow", q, answer, keys=keys(a, op, b), how="end", value=end), int(end)


def sums_go_on(rng: random.Random) -> Dialogue:
    part, result = first_sum(rng)
    parts = [part]
    for _ in range(rng.randrange(1, 4)):
        op = "×" if 0 < result < 100 and rng.random() < 0.2 else rng.choice("+-")
        if op == "×" and rng.random() < 0.5:
            n, q = 2, say(rng, TWICE)
        else:
            n = rng.randrange(2, 10) if op == "×" or rng.random() < 0.5 else rng.randrange(10, 100)
            q = say(rng, ON[op], n=n)
        answer, end = answer_sum(result, op, n)
        parts.append(exchange("follow", q, answer, keys=keys(result, op, n), how="end", value=end))
        result = int(end)
    return join("follow", parts)


def doubt(rng: random.Random) -> Dialogue:
    """Asked again, the model stays with what it worked out."""
    part, _ = first_sum(rng) if rng.random() < 0.5 else (more_units(rng), 0)
    answer = part.turns[-1].content
    asked, begin = (SURE, "Yes") if rng.random() < 0.6 else (HOW, "I worked it out")
    return join("follow", [part, exchange("follow", say(rng, asked), f"{begin}: {answer}", how="text", value=answer)])


MAKERS = ((more_units, 3), (sums_go_on, 3), (doubt, 1))
