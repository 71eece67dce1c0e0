"""Questions about the facts of fact_table.py, and about things that nobody knows."""

from __future__ import annotations

import random

from .dialogue import Dialogue, exchange, say
from .fact_table import (
    AUTHORS,
    CAPITALS,
    CLASSES,
    CONTINENTS,
    CURRENCIES,
    ELEMENTS,
    FREE,
    HOMES,
    INVENTORS,
    MIXES,
    ORDINALS,
    PLANETS,
    SOUNDS,
    TONGUES,
    YEARS,
    YOUNG,
)
from .words import invented


def bare(country: str) -> str:
    return country.removeprefix("the ")


def capital(rng: random.Random) -> Dialogue:
    country, city = rng.choice(list(CAPITALS.items()))
    if rng.random() < 0.3:
        q = say(
            rng,
            (
                "Which country has the capital {c}?",
                "{c} is the capital of which country?",
                "Of which country is {c} the capital?",
            ),
            c=city,
        )
        return exchange("facts", q, f"{city} is the capital of {country}.", how="end", value=country)
    q = say(
        rng,
        (
            "What is the capital of {c}?",
            "Capital of {c}?",
            "What's the capital of {c}?",
            "Which city is the capital of {c}?",
            "Tell me the capital of {c}.",
            "Do you know the capital of {c}?",
            "{c} capital?",
            "name the capital of {c}",
            "what is the capital city of {c}",
        ),
        c=country if rng.random() < 0.85 else bare(country).lower(),
    )
    return exchange("facts", q, f"The capital of {country} is {city}.", how="end", value=city)


def table(rng: random.Random) -> Dialogue:
    """Facts of the form: something of a country."""
    kind = rng.randrange(3)
    if kind == 0:
        country, value = rng.choice(list(CONTINENTS.items()))
        q = say(
            rng,
            ("On which continent is {c}?", "Where is {c}?", "What continent is {c} in?", "{c} is on which continent?"),
            c=country,
        )
        return exchange("facts", q, f"{country} is in {value}.", how="end", value=value)
    if kind == 1:
        country, value = rng.choice(list(CURRENCIES.items()))
        q = say(
            rng,
            (
                "What is the currency of {c}?",
                "Which currency is used in {c}?",
                "What money do they use in {c}?",
                "currency of {c}?",
            ),
            c=country,
        )
        return exchange("facts", q, f"The currency of {country} is the {value}.", how="end", value=value)
    country, value = rng.choice(list(TONGUES.items()))
    q = say(
        rng,
        (
            "What language is spoken in {c}?",
            "Which language do people speak in {c}?",
            "What do they speak in {c}?",
            "language of {c}?",
        ),
        c=country,
    )
    return exchange("facts", q, f"The main language of {country} is {value}.", how="end", value=value)


def element(rng: random.Random) -> Dialogue:
    name, symbol, n = rng.choice(ELEMENTS)
    kind = rng.randrange(4)
    if kind == 0:
        q = say(
            rng,
            (
                "What is the symbol of {e}?",
                "Chemical symbol for {e}?",
                "What is the chemical symbol of {e}?",
                "symbol for {e}?",
            ),
            e=name,
        )
        return exchange("facts", q, f"The symbol of {name} is {symbol}.", how="end", value=symbol)
    if kind == 1:
        q = say(
            rng,
            (
                "Which element has the symbol {s}?",
                "What element is {s}?",
                "What does the chemical symbol {s} stand for?",
            ),
            s=symbol,
        )
        return exchange("facts", q, f"{symbol} is the symbol of {name}.", how="end", value=name)
    if kind == 2:
        q = say(
            rng,
            (
                "What is the atomic number of {e}?",
                "Atomic number of {e}?",
                "Which number does {e} have in the periodic table?",
            ),
            e=name,
        )
        return exchange("facts", q, f"The atomic number of {name} is {n}.", how="end", value=n)
    q = say(rng, ("Which element has atomic number {n}?", "What is element {n}?", "Element number {n}?"), n=n)
    return exchange("facts", q, f"Element number {n} is {name}.", how="end", value=name)


def animal(rng: random.Random) -> Dialogue:
    kind = rng.randrange(5)
    if kind < 2:
        name, value = rng.choice(list(CLASSES.items()))
        article = "an" if name[0] in "aeiou" else "a"
        group = "an" if value[0] in "aeiou" else "a"
        q = say(
            rng,
            (
                "What kind of animal is {a}?",
                "Is {a} a mammal or a bird?" if value in ("mammal", "bird") else "What is {a}?",
                "What class of animal is {a}?",
                "Which group of animals does {a} belong to?",
            ),
            a=f"{article} {name}",
        )
        return exchange("facts", q, f"{article.capitalize()} {name} is {group} {value}.", how="end", value=value)
    if kind == 2:
        name, value = rng.choice(list(SOUNDS.items()))
        q = say(
            rng,
            ("What sound does {a} make?", "What does {a} say?", "Which sound does {a} make?"),
            a=f"{'an' if name[0] in 'aeiou' else 'a'} {name}",
        )
        return exchange("facts", q, f"{'An' if name[0] in 'aeiou' else 'A'} {name} {value}.", how="end", value=value)
    if kind == 3:
        name, value = rng.choice(list(YOUNG.items()))
        q = say(
            rng,
            (
                "What is a baby {a} called?",
                "What do you call a young {a}?",
                "baby {a}?",
                "How is the young of a {a} called?",
            ),
            a=name,
        )
        return exchange("facts", q, f"A young {name} is called a {value}.", how="end", value=value)
    name, value = rng.choice(list(HOMES.items()))
    q = say(rng, ("Where does a {a} live?", "What is the home of a {a}?", "Where do {a}s live?"), a=name)
    return exchange("facts", q, f"A {name} lives in a {value}.", how="end", value=value)


def people(rng: random.Random) -> Dialogue:
    kind = rng.randrange(4)
    if kind == 0:
        title, name = rng.choice(list(AUTHORS.items()))
        q = say(
            rng,
            ("Who wrote {t}?", "Who is the author of {t}?", "Author of {t}?", "Do you know who wrote {t}?"),
            t=title,
        )
        return exchange("facts", q, f"{title} was written by {name}.", how="end", value=name)
    if kind == 1:
        thing, name = rng.choice(list(INVENTORS.items()))
        q = say(
            rng,
            ("Who discovered {t}?", "Who is known for {t}?", "Who do we link with {t}?", "Who invented {t}?"),
            t=thing,
        )
        return exchange("facts", q, f"{name} is known for {thing}.", how="text", value=name)
    if kind == 2:
        event, year = rng.choice(list(YEARS.items()))
        q = say(rng, ("When did {e}?", "In which year did {e}?", "What year did {e}?"), e=event)
        return exchange("facts", q, f"That was in {year}.", how="end", value=year)
    a, b, c = rng.choice(MIXES)
    if rng.random() < 0.5:
        a, b = b, a
    q = say(
        rng,
        (
            "What colour do {a} and {b} make?",
            "Mix {a} and {b}: which color?",
            "What do you get if you mix {a} and {b}?",
            "{a} plus {b} paint?",
        ),
        a=a,
        b=b,
    )
    return exchange("facts", q, f"{a.capitalize()} and {b} make {c}.", how="end", value=c)


def planet(rng: random.Random) -> Dialogue:
    i = rng.randrange(8)
    if rng.random() < 0.5:
        q = say(
            rng,
            (
                "What is the {n} planet from the Sun?",
                "Which planet is the {n} from the sun?",
                "{n} planet of the solar system?",
            ),
            n=ORDINALS[i],
        )
        return exchange(
            "facts", q, f"The {ORDINALS[i]} planet from the Sun is {PLANETS[i]}.", how="end", value=PLANETS[i]
        )
    q = say(
        rng,
        (
            "Which number is {p} from the Sun?",
            "Which place does {p} have among the planets?",
            "Where is {p} in the solar system?",
        ),
        p=PLANETS[i],
    )
    return exchange(
        "facts",
        q,
        f"{PLANETS[i]} is the {ORDINALS[i]} planet from the Sun.",
        how="end",
        value=f"the {ORDINALS[i]} planet from the Sun",
    )


def free(rng: random.Random) -> Dialogue:
    questions, answer = rng.choice(FREE)
    return exchange("facts", say(rng, questions), answer, how="text", value=answer)


def unknown(rng: random.Random) -> Dialogue:
    """Things that do not exist, and things that nobody told the model."""
    x = invented(rng)
    templates, answer = rng.choice(
        (
            (
                ("What is the capital of {x}?", "Capital of {x}?", "Tell me the capital of {x}."),
                f"I do not know the capital of {x}.",
            ),
            (("Who wrote {x}?", "Who is the author of {x}?"), f"I do not know who wrote {x}."),
            (("What is a {x}?", "What does {x} mean?", "What is {x}?"), f"I do not know what {x} is."),
            (("Who is {x}?", "Who was {x}?", "Do you know {x}?", "Tell me about {x}."), f"I do not know {x}."),
            (("What is the symbol of {x}?", "Chemical symbol for {x}?"), f"I do not know an element called {x}."),
            (("When did {x} happen?", "In which year was {x}?"), f"I do not know when {x} was."),
            (("Where is {x}?", "On which continent is {x}?"), f"I do not know where {x} is."),
        )
    )
    return exchange("unknown", say(rng, templates, x=x), answer, how="text", value="I do not know")


MAKERS = ((capital, 7), (table, 4), (element, 4), (animal, 4), (people, 4), (planet, 1), (free, 9), (unknown, 4))
