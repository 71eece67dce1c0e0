"""Spelling, sorting, letters, and small questions about words."""

from __future__ import annotations

import random

from .dialogue import Dialogue, exchange, listing, say
from .words import ANIMALS, COLOURS, FRUITS, NAMES, SPELL, invented

OPPOSITES = tuple(
    pair.split(":")
    for pair in (
        "hot:cold big:small old:new fast:slow high:low light:dark good:bad up:down open:closed full:empty wet:dry rich:poor "
        "happy:sad long:short hard:soft heavy:light early:late strong:weak clean:dirty near:far loud:quiet thick:thin wide:narrow "
        "left:right inside:outside first:last true:false win:lose buy:sell start:stop push:pull day:night love:hate young:old "
        "deep:shallow sweet:sour brave:afraid always:never more:less north:south east:west before:after above:below"
    ).split()
)
PLURALS = tuple(
    pair.split(":")
    for pair in (
        "cat:cats dog:dogs mouse:mice child:children foot:feet tooth:teeth man:men woman:women goose:geese box:boxes bus:buses "
        "city:cities baby:babies leaf:leaves knife:knives sheep:sheep fish:fish person:people house:houses tree:trees wolf:wolves "
        "story:stories glass:glasses potato:potatoes book:books key:keys wife:wives ox:oxen day:days"
    ).split()
)
PASTS = tuple(
    pair.split(":")
    for pair in (
        "go:went see:saw eat:ate run:ran take:took come:came give:gave write:wrote speak:spoke sing:sang swim:swam buy:bought "
        "think:thought bring:brought find:found know:knew make:made say:said tell:told sleep:slept fly:flew drive:drove play:played "
        "walk:walked jump:jumped begin:began break:broke catch:caught drink:drank fall:fell"
    ).split()
)


def word(rng: random.Random) -> str:
    return rng.choice(SPELL) if rng.random() < 0.75 else invented(rng).lower()


def quoted(rng: random.Random, w: str) -> str:
    dice = rng.random()
    return f'"{w}"' if dice < 0.35 else f"'{w}'" if dice < 0.5 else w


def spelled(w: str) -> str:
    return "-".join(w)


def spell(rng: random.Random) -> Dialogue:
    w = word(rng)
    q = say(
        rng,
        (
            "How do you spell {w}?",
            "Spell {w}.",
            "Spell the word {w}.",
            "Can you spell {w}?",
            "spell {w} for me",
            "What are the letters of {w}?",
            "Spell out {w}",
        ),
        w=quoted(rng, w),
    )
    return exchange("spelling", q, spelled(w), how="text", value=spelled(w))


def letters(rng: random.Random) -> Dialogue:
    """How many letters, or how often one occurs."""
    w = word(rng)
    if rng.random() < 0.5:
        q = say(
            rng,
            (
                "How many letters are in {w}?",
                "How many letters does {w} have?",
                "Count the letters in {w}.",
                "How long is the word {w}?",
                "number of letters in {w}?",
            ),
            w=quoted(rng, w),
        )
        end = f"{len(w)} letters"
        return exchange("spelling", q, f"{spelled(w)}: {end}.", how="end", value=end)
    letter = rng.choice(w.lower()) if rng.random() < 0.85 else rng.choice("abcdefghijklmnoprstuvw")
    q = say(
        rng,
        (
            "How many {l}'s are in {w}?",
            "How often does the letter {l} appear in {w}?",
            "How many times is {l} in {w}?",
            "Count the letter {l} in {w}.",
            "how many {l} in {w}?",
        ),
        l=letter,
        w=quoted(rng, w),
    )
    n = w.lower().count(letter)
    end = f"{letter} appears {n} time{'' if n == 1 else 's'}"
    return exchange("spelling", q, f"{spelled(w)}: {end}.", how="end", value=end)


def ends(rng: random.Random) -> Dialogue:
    w = word(rng)
    first = rng.random() < 0.5
    which = "first" if first else "last"
    q = say(
        rng,
        (
            "What is the {x} letter of {w}?",
            "Which letter is {x} in {w}?",
            "{x} letter of {w}?",
            "Tell me the {x} letter in the word {w}.",
        ),
        x=which,
        w=quoted(rng, w),
    )
    letter = w[0] if first else w[-1]
    return exchange("spelling", q, f"The {which} letter of {w} is {letter}.", how="end", value=f"is {letter}")


def backwards(rng: random.Random) -> Dialogue:
    w = word(rng)
    q = say(
        rng,
        (
            "Spell {w} backwards.",
            "Reverse the word {w}.",
            "What is {w} backwards?",
            "Write {w} in reverse",
            "reverse {w}",
        ),
        w=quoted(rng, w),
    )
    end = spelled(w[::-1])
    return exchange("spelling", q, f"{spelled(w)} backwards is {end}.", how="end", value=end)


def capitals(rng: random.Random) -> Dialogue:
    w = word(rng).lower()
    q = say(
        rng,
        ("Write {w} in capital letters.", "Put {w} in upper case.", "uppercase {w}", "Make {w} all caps."),
        w=quoted(rng, w),
    )
    return exchange("spelling", q, w.upper(), how="text", value=w.upper())


def sort_words(rng: random.Random) -> Dialogue:
    pool = rng.choice((SPELL, SPELL, NAMES, ANIMALS, FRUITS, COLOURS))
    items = list(dict.fromkeys(rng.sample(pool, rng.randrange(3, 7))))
    q = say(
        rng,
        (
            "Sort these words: {w}",
            "Put these in alphabetical order: {w}",
            "Sort alphabetically: {w}",
            "alphabetical order: {w}",
            "Can you sort {w} by alphabet?",
            "Order these words from a to z: {w}",
            "Arrange alphabetically: {w}",
        ),
        w=", ".join(items),
    )
    text = ", ".join(sorted(items, key=str.lower))
    return exchange("sorting", q, text, how="text", value=text)


def sort_numbers(rng: random.Random) -> Dialogue:
    items = rng.sample(range(1, 100 if rng.random() < 0.8 else 1000), rng.randrange(3, 7))
    down = rng.random() < 0.3
    if down:
        q = say(
            rng,
            (
                "Sort from largest to smallest: {w}",
                "Sort these numbers in descending order: {w}",
                "Order {w} from high to low",
                "Put these numbers in descending order: {w}",
            ),
            w=", ".join(map(str, items)),
        )
    else:
        q = say(
            rng,
            (
                "Sort these numbers: {w}",
                "Put these numbers in order: {w}",
                "Sort {w}",
                "Order these from smallest to largest: {w}",
                "Sort in ascending order: {w}",
                "Arrange these numbers from low to high: {w}",
            ),
            w=", ".join(map(str, items)),
        )
    text = ", ".join(map(str, sorted(items, reverse=down)))
    return exchange("sorting", q, text, how="text", value=text)


def extreme(rng: random.Random) -> Dialogue:
    items = rng.sample(range(1, 100), rng.randrange(3, 7))
    most = rng.random() < 0.5
    name = rng.choice(("largest", "biggest", "highest") if most else ("smallest", "lowest"))
    q = say(
        rng,
        (
            "What is the {n} of {w}?",
            "Which is the {n} number: {w}?",
            "Find the {n}: {w}",
            "Which of these is the {n}? {w}",
        ),
        n=name,
        w=", ".join(map(str, items)),
    )
    value = max(items) if most else min(items)
    return exchange("sorting", q, f"The {name} number is {value}.", how="end", value=str(value))


def how_many(rng: random.Random) -> Dialogue:
    """Counting the items of a list."""
    items = rng.sample(rng.choice((FRUITS, ANIMALS, COLOURS, NAMES)), rng.randrange(2, 9))
    q = say(
        rng,
        (
            "How many words are in this list: {w}?",
            "Count the items: {w}",
            "How many things are there: {w}?",
            "How many names do I list here: {w}?",
        ),
        w=", ".join(items),
    )
    counted = ", ".join(f"{i} {item}" for i, item in enumerate(items, 1))
    return exchange("counting", q, f"{counted}: {len(items)}.", how="end", value=str(len(items)))


def alphabet(rng: random.Random) -> Dialogue:
    i = rng.randrange(25)
    a, b = "abcdefghijklmnopqrstuvwxyz"[i : i + 2]
    if rng.random() < 0.5:
        q = say(
            rng,
            ("Which letter comes after {a}?", "What letter follows {a}?", "What comes after {a} in the alphabet?"),
            a=a.upper(),
        )
        return exchange("spelling", q, f"The letter after {a.upper()} is {b.upper()}.", how="end", value=b.upper())
    q = say(rng, ("Which letter comes before {b}?", "What letter is before {b} in the alphabet?"), b=b.upper())
    return exchange("spelling", q, f"The letter before {b.upper()} is {a.upper()}.", how="end", value=a.upper())


def grammar(rng: random.Random) -> Dialogue:
    kind = rng.randrange(3)
    if kind == 0:
        a, b = rng.choice(OPPOSITES)
        if rng.random() < 0.4 and a not in ("light", "old") and b not in ("light", "old"):
            a, b = b, a
        q = say(
            rng,
            (
                "What is the opposite of {a}?",
                "Opposite of {a}?",
                "Tell me the opposite of {a}.",
                "What's the antonym of {a}?",
            ),
            a=quoted(rng, a),
        )
        return exchange("words", q, f"The opposite of {a} is {b}.", how="end", value=b)
    if kind == 1:
        a, b = rng.choice(PLURALS)
        q = say(
            rng,
            ("What is the plural of {a}?", "Plural of {a}?", "How do you say {a} in the plural?", "One {a}, two ...?"),
            a=quoted(rng, a),
        )
        return exchange("words", q, f"The plural of {a} is {b}.", how="end", value=b)
    a, b = rng.choice(PASTS)
    q = say(
        rng,
        ("What is the past tense of {a}?", "Past tense of {a}?", "What is the past of {a}?", "past form of {a}?"),
        a=quoted(rng, a),
    )
    return exchange("words", q, f"The past tense of {a} is {b}.", how="end", value=b)


def repeat(rng: random.Random) -> Dialogue:
    """Saying after: practice in copying."""
    text = " ".join(word(rng) for _ in range(rng.randrange(1, 6)))
    if rng.random() < 0.3:
        text = " ".join(str(rng.randrange(1000)) for _ in range(rng.randrange(1, 6)))
    q = say(
        rng,
        (
            "Repeat after me: {w}",
            "Say: {w}",
            "Please repeat: {w}",
            "Echo this: {w}",
            "Repeat this text: {w}",
            "Say {w}",
        ),
        w=text,
    )
    return exchange("copying", q, text, how="text", value=text)


def items_of(rng: random.Random) -> Dialogue:
    """ "Name three fruits"."""
    name, pool = rng.choice((("fruits", FRUITS), ("colours", COLOURS), ("animals", ANIMALS), ("colors", COLOURS)))
    n = rng.randrange(2, 6)
    q = say(
        rng,
        ("Name {n} {x}.", "List {n} {x}.", "Give me {n} {x}.", "Tell me {n} {x}", "Can you name {n} {x}?"),
        n=rng.choice((str(n), ("two", "three", "four", "five")[n - 2])),
        x=name,
    )
    return exchange("words", q, f"{listing(rng.sample(pool[:12], n))}.".capitalize())


MAKERS = (
    (spell, 3),
    (letters, 4),
    (ends, 1),
    (backwards, 1),
    (capitals, 1),
    (sort_words, 3),
    (sort_numbers, 3),
    (extreme, 2),
    (how_many, 1),
    (alphabet, 1),
    (grammar, 3),
    (repeat, 2),
    (items_of, 1),
)
