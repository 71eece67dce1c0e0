"""Weekdays, months, dates and times."""

from __future__ import annotations

import datetime
import random

from .dialogue import Dialogue, exchange, say

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def weekday(rng: random.Random) -> Dialogue:
    i, kind = rng.randrange(7), rng.randrange(4)
    if kind == 0:
        after = rng.random() < 0.6
        q = say(
            rng,
            ("What day comes after {d}?", "Which day follows {d}?", "What is the day after {d}?")
            if after
            else ("What day comes before {d}?", "Which day is before {d}?", "What is the day before {d}?"),
            d=DAYS[i],
        )
        end = DAYS[(i + (1 if after else -1)) % 7]
        return exchange(
            "dates", q, f"The day {'after' if after else 'before'} {DAYS[i]} is {end}.", how="end", value=end
        )
    n = rng.randrange(2, 31)
    end = DAYS[(i + n) % 7]
    if kind < 3:
        q = say(
            rng,
            (
                "If today is {d}, what day is it in {n} days?",
                "Today is {d}. Which day is it in {n} days?",
                "What day is {n} days after {d}?",
                "It is {d}. What day will it be in {n} days?",
            ),
            d=DAYS[i],
            n=n,
        )
        weeks, rest = divmod(n, 7)
        if not weeks:
            why = ""
        elif rest:
            why = f"{n} days are {weeks} week{'s' * (weeks > 1)} and {rest} day{'s' * (rest > 1)}. "
        else:
            why = f"{n} days are exactly {weeks} week{'s' * (weeks > 1)}. "
        return exchange("dates", q, f"{why}{n} days after {DAYS[i]} it is {end}.", how="end", value=end)
    n = rng.randrange(1, 8)
    end = DAYS[i]
    q = say(
        rng,
        ("Which is day number {n} of the week?", "What is the {x} day of the week?"),
        n=i + 1,
        x=("first", "second", "third", "fourth", "fifth", "sixth", "seventh")[i],
    )
    return exchange("dates", q, f"Counting from Monday, it is {end}.", how="end", value=end)


def month(rng: random.Random) -> Dialogue:
    i, kind = rng.randrange(12), rng.randrange(4)
    if kind == 0:
        q = say(
            rng,
            ("How many days does {m} have?", "How many days are in {m}?", "How long is {m}?", "days in {m}?"),
            m=MONTHS[i],
        )
        if i == 1:
            return exchange("dates", q, "February has 28 days, and 29 in a leap year.", how="text", value="28 days")
        return exchange("dates", q, f"{MONTHS[i]} has {LENGTHS[i]} days.", how="end", value=f"{LENGTHS[i]} days")
    if kind == 1:
        after = rng.random() < 0.6
        q = say(
            rng,
            ("Which month comes after {m}?", "What month follows {m}?", "What is the month after {m}?")
            if after
            else ("Which month comes before {m}?", "What month is before {m}?"),
            m=MONTHS[i],
        )
        end = MONTHS[(i + (1 if after else -1)) % 12]
        return exchange(
            "dates", q, f"The month {'after' if after else 'before'} {MONTHS[i]} is {end}.", how="end", value=end
        )
    if kind == 2:
        q = say(
            rng,
            ("Which month is number {n}?", "What is month {n} of the year?", "What is the name of month {n}?"),
            n=i + 1,
        )
        return exchange("dates", q, f"Month {i + 1} is {MONTHS[i]}.", how="end", value=MONTHS[i])
    year = rng.randrange(1890, 2060)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    q = say(rng, ("Is {y} a leap year?", "Was {y} a leap year?", "leap year {y}?"), y=year)
    return exchange(
        "dates",
        q,
        f"{'Yes' if leap else 'No'}, {year} is {'' if leap else 'not '}a leap year.",
        how="text",
        value="Yes" if leap else "No",
    )


def date(rng: random.Random) -> Dialogue:
    i = rng.randrange(12)
    d, n = rng.randrange(1, LENGTHS[i] + 1), rng.randrange(2, 21)
    then = datetime.date(2023, i + 1, d) + datetime.timedelta(n)
    end = f"{MONTHS[then.month - 1]} {then.day}"
    q = say(
        rng,
        (
            "What date is {n} days after {m} {d}?",
            "Which date is {n} days after {m} {d}?",
            "{m} {d} plus {n} days?",
            "If today is {m} {d}, what is the date in {n} days?",
        ),
        n=n,
        m=MONTHS[i],
        d=d,
    )
    if then.month == i + 1:
        return exchange("dates", q, f"{d} + {n} = {d + n}, so it is {end}.", how="end", value=end)
    return exchange(
        "dates",
        q,
        f"{d} + {n} = {d + n}. {MONTHS[i]} has {LENGTHS[i]} days and {d + n} - {LENGTHS[i]} = {then.day}, so it is {end}.",
        how="end",
        value=end,
    )


def between(rng: random.Random) -> Dialogue:
    i = rng.randrange(12)
    a, b = sorted(rng.sample(range(1, LENGTHS[i] + 1), 2))
    q = say(
        rng,
        (
            "How many days are there from {m} {a} to {m} {b}?",
            "How many days between {m} {a} and {m} {b}?",
            "How many days is it from {m} {a} until {m} {b}?",
        ),
        m=MONTHS[i],
        a=a,
        b=b,
    )
    end = f"{b - a} day{'s' * (b - a != 1)}"
    return exchange(
        "dates", q, f"{b} - {a} = {b - a}, so there {'is' if b - a == 1 else 'are'} {end}.", how="end", value=end
    )


def clock(rng: random.Random) -> Dialogue:
    h, m, n = rng.randrange(24), 5 * rng.randrange(12), 5 * rng.randrange(1, 19)
    total = h * 60 + m + n
    end = f"{total // 60 % 24}:{total % 60:02}"
    q = say(
        rng,
        ("It is {t}. What time is it in {n} minutes?", "What time is {n} minutes after {t}?", "{t} plus {n} minutes?"),
        t=f"{h}:{m:02}",
        n=n,
    )
    if m + n < 60:
        return exchange("dates", q, f"{m} + {n} = {m + n}, so it is {end}.", how="end", value=end)
    hours = (m + n) // 60
    return exchange(
        "dates",
        q,
        f"{m} + {n} = {m + n} minutes, which is {hours} hour{'s' * (hours > 1)} and {(m + n) % 60} minutes, so it is {end}.",
        how="end",
        value=end,
    )


MAKERS = ((weekday, 3), (month, 2), (date, 2), (between, 1), (clock, 1))
