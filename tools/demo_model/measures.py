"""Conversion of lengths, weights, volumes, times, money and temperatures, in British and American spelling."""

from __future__ import annotations

import random
from decimal import Decimal

from .dialogue import Dialogue, exchange, say

SPELLINGS = {
    "km": ("km", "kilometres", "kilometers"),
    "m": ("m", "metres", "meters"),
    "cm": ("cm", "centimetres", "centimeters"),
    "mm": ("mm", "millimetres", "millimeters"),
    "kg": ("kg", "kilograms", "kilos"),
    "g": ("g", "grams"),
    "l": ("l", "litres", "liters"),
    "ml": ("ml", "millilitres", "milliliters"),
    "t": ("t", "tonnes"),
    "inches": ("inches", "inches", "in"),
    "feet": ("feet", "feet", "ft"),
    "yards": ("yards", "yards", "yd"),
    "miles": ("miles", "miles", "mi"),
    "pounds": ("pounds", "pounds", "lbs", "lb"),
    "ounces": ("ounces", "ounces", "oz"),
    "minutes": ("minutes", "minutes", "min"),
}
"""How people write a unit, where that is not one way only"""
EXACT = (
    ("km", "m", 1000),
    ("m", "cm", 100),
    ("m", "mm", 1000),
    ("cm", "mm", 10),
    ("kg", "g", 1000),
    ("l", "ml", 1000),
    ("t", "kg", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("years", "months", 12),
    ("decades", "years", 10),
    ("centuries", "years", 100),
    ("feet", "inches", 12),
    ("yards", "feet", 3),
    ("pounds", "ounces", 16),
    ("gallons", "quarts", 4),
    ("gallons", "pints", 8),
    ("tablespoons", "teaspoons", 3),
    ("dozen", "pieces", 12),
    ("dollars", "cents", 100),
    ("euros", "cents", 100),
)
ABOUT = (
    ("inches", "cm", "2.54"),
    ("cm", "inches", "0.39"),
    ("feet", "cm", "30.5"),
    ("feet", "m", "0.3"),
    ("m", "feet", "3.3"),
    ("yards", "m", "0.9"),
    ("miles", "km", "1.6"),
    ("km", "miles", "0.62"),
    ("pounds", "kg", "0.45"),
    ("kg", "pounds", "2.2"),
    ("ounces", "g", "28"),
    ("gallons", "l", "3.8"),
    ("pints", "ml", "473"),
    ("cups", "ml", "240"),
)
"""Between systems: how many of the second the first is. All but the first are rounded."""
RATES = (
    ("years", "weeks", 52),
    ("years", "days", 365),
    ("hours", "seconds", 3600),
    ("days", "minutes", 1440),
    ("weeks", "hours", 168),
    ("millennia", "years", 1000),
    ("miles", "feet", 5280),
    ("miles", "yards", 1760),
    ("miles", "m", 1609),
    ("yards", "inches", 36),
    ("stones", "pounds", 14),
)
"""Factors that are asked for, but not multiplied"""
ASK = (
    "How many {v} are {n} {u}?",
    "How many {v} are in {n} {u}?",
    "How many {v} are there in {n} {u}?",
    "how many {v} in {n} {u}",
    "How many {v} is {n} {u}?",
    "What is {n} {u} in {v}?",
    "what's {n} {u} in {v}",
    "How much is {n} {u} in {v}?",
    "Convert {n} {u} to {v}.",
    "convert {n} {u} into {v}",
    "Can you convert {n} {u} to {v}?",
    "Change {n} {u} into {v}",
    "{n} {u} in {v}?",
    "{n} {u} to {v}",
    "{n} {u} = ? {v}",
)
WARM = tuple(text for text in ASK if not text.lower().startswith("how many"))
"""Wordings that fit temperatures"""
ASK_ONE = (
    "How many {v} are in {u}?",
    "How many {v} are there in {u}?",
    "how many {v} in {u}",
    "How many {v} does {u} have?",
    "How many {v} make {u}?",
)
SINGULAR = {"feet": "foot", "inches": "inch", "centuries": "century", "millennia": "millennium"}
CELSIUS = ("°C", "degrees Celsius", "Celsius", "celsius", "C", "degrees C")
FAHRENHEIT = ("°F", "degrees Fahrenheit", "Fahrenheit", "fahrenheit", "F", "degrees F")


def spelled(rng: random.Random, *units: str) -> list[str]:
    """The units as one person writes them: all in their first, second or third way."""
    way = 0 if rng.random() < 0.5 else rng.randrange(1, 4)
    return [(ways := SPELLINGS.get(unit, (unit,)))[min(way, len(ways) - 1)] for unit in units]


def unit(name: str, n: object) -> str:
    """The unit as it stands behind a number."""
    if str(n) != "1":
        return name
    return SINGULAR.get(name, name[:-1] if len(name) > 3 and name.endswith("s") else name)


def a(name: str) -> str:
    one = unit(name, 1)
    return f"{'an' if one[0] in 'aeio' or one.startswith('hour') else 'a'} {one}"


def plain(value: Decimal) -> str:
    """Without zeros behind the point."""
    return f"{value.normalize():f}"


def amount(rng: random.Random) -> int:
    dice = rng.random()
    return rng.randrange(1, 13) if dice < 0.7 else rng.randrange(13, 21) if dice < 0.8 else 10 * rng.randrange(2, 11)


def conversion(n: int, factor: str, u: str, v: str, about: bool) -> tuple[str, str]:
    """(answer, how it ends): n of unit u, each of which is `factor` of unit v."""
    result = plain(n * Decimal(factor))
    end = f"{result} {unit(v, result)}"
    steps = f"{n} × {factor} = {result}, so " if n > 1 else ""
    return f"{steps}{n} {unit(u, n)} {'is' if n == 1 else 'are'} {'about ' if about else ''}{end}.", end


def convert(rng: random.Random) -> Dialogue:
    """To the smaller unit and back, in whole numbers."""
    u, v, factor = rng.choice(EXACT)
    n = rng.randrange(1, 100) if factor in (10, 100, 1000) and rng.random() < 0.6 else rng.randrange(1, 13)
    u, v = spelled(rng, u, v)
    if rng.random() < 0.6:
        answer, end = conversion(n, str(factor), u, v, False)
        return exchange("units", say(rng, ASK, n=n, u=unit(u, n), v=v), answer, how="end", value=end)
    q = say(rng, ASK, n=n * factor, u=v, v=u)
    end = f"{n} {unit(u, n)}"
    answer = f"{n * factor} / {factor} = {n}, so {n * factor} {v} are {end}."
    return exchange("units", q, answer, how="end", value=end)


def between(rng: random.Random) -> Dialogue:
    """From one system of measures to another."""
    i = rng.randrange(len(ABOUT))
    u, v, factor = ABOUT[i]
    n = amount(rng)
    u, v = spelled(rng, u, v)
    answer, end = conversion(n, factor, u, v, i > 0)
    return exchange("units", say(rng, ASK, n=n, u=unit(u, n), v=v), answer, how="end", value=end)


def rate(rng: random.Random) -> Dialogue:
    """How many of one unit another is."""
    table = [(u, v, str(factor), False) for u, v, factor in (*RATES, *EXACT)]
    table += [(u, v, factor, i > 0) for i, (u, v, factor) in enumerate(ABOUT)]
    u, v, factor, about = rng.choice(table)
    u, v = spelled(rng, u, v)
    answer, end = conversion(1, factor, u, v, about)
    return exchange("units", say(rng, ASK_ONE, u=a(u), v=v), answer, how="end", value=end)


def temperature(rng: random.Random) -> Dialogue:
    """Any whole degree; to Celsius rounded to a tenth."""
    if rng.random() < 0.5:
        c = 5 * rng.randrange(-4, 21) if rng.random() < 0.5 else rng.randrange(-30, 121)
        f = plain(Decimal(c) * 9 / 5 + 32)
        q = say(rng, WARM, n=c, u=rng.choice(CELSIUS), v=rng.choice(FAHRENHEIT))
        scaled = plain(Decimal(9 * c) / 5)
        answer = f"{c} × 9 / 5 + 32 = {9 * c} / 5 + 32 = {scaled} + 32 = {f}, so {c} °C are {f} °F."
        return exchange("units", q, answer, how="end", value=f"{f} °F")
    whole = 9 * rng.randrange(-6, 21) + 32 if rng.random() < 0.5 else rng.randrange(-20, 221)
    rest, exact = whole - 32, (whole - 32) % 9 == 0
    c_text = plain((Decimal(5 * rest) / 9).quantize(Decimal("0.1")))
    q = say(rng, WARM, n=whole, u=rng.choice(FAHRENHEIT), v=rng.choice(CELSIUS))
    answer = (
        f"({whole} - 32) × 5 / 9 = {rest} × 5 / 9 = {5 * rest} / 9 = {c_text}, "
        f"so {whole} °F are {'' if exact else 'about '}{c_text} °C."
    )
    return exchange("units", q, answer, how="end", value=f"{c_text} °C")


MAKERS = ((convert, 6), (between, 5), (rate, 2), (temperature, 3))
