"""Sums, products, comparisons, sequences and word problems. Answers show the steps that a small model needs."""

from __future__ import annotations

import random
from decimal import Decimal

from .dialogue import Dialogue, exchange, say
from .words import NAMES, THINGS

ASK = (
    "What is {sum}?",
    "{sum}",
    "{sum} = ?",
    "{sum}=",
    "Calculate {sum}.",
    "How much is {sum}?",
    "Compute {sum}",
    "What's {sum}?",
    "Work out {sum}.",
    "{sum}?",
    "Can you tell me what {sum} is?",
    "Solve {sum}",
    "Please add it up: {sum}",
    "What does {sum} equal?",
    "What is the result of {sum}?",
    "I need to know {sum}.",
    "Evaluate {sum}",
    "Do {sum} for me",
    "Do you know {sum}?",
    "Tell me {sum}",
    "whats {sum}",
    "how much does {sum} make?",
    "give me {sum}",
    "Answer: {sum}",
)
WORDS = {
    "+": ("{a} plus {b}", "the sum of {a} and {b}", "{a} and {b} together", "{a} added to {b}"),
    "-": ("{a} minus {b}", "{a} take away {b}", "the difference of {a} and {b}", "{a} less {b}"),
    "×": ("{a} times {b}", "{a} multiplied by {b}", "the product of {a} and {b}"),
    "/": ("{a} divided by {b}", "{a} over {b}", "{a} split by {b}"),
}
SIGNS = {"+": ("+",), "-": ("-",), "×": ("*", "×", "x", "*"), "/": ("/", "÷", ":", "/")}
ASK_ONLY = {"Please add it up: {sum}": "+"}


def number(rng: random.Random) -> int:
    """Mostly of two digits."""
    dice = rng.random()
    if dice < 0.72:
        return rng.randrange(10, 100)
    if dice < 0.92:
        return rng.randrange(10)
    return rng.randrange(100, 1000)


def answer_sum(a: int, op: str, b: int) -> tuple[str, str]:
    """(answer, how it must end)."""
    if op == "+":
        return f"{a} + {b} = {a + b}.", str(a + b)
    if op == "-":
        return f"{a} - {b} = {a - b}.", str(a - b)
    if op == "×":
        return product(a, b), str(a * b)
    result = quotient(a, b)
    return f"{a} / {b} = {result}.", result


def product(a: int, b: int) -> str:
    """Long multiplication on one line: tens first. Products in the times table up to 12 have no steps."""
    if max(a, b) <= 12 or 0 in (a, b) or min(a, b) in (1, 10, 100):
        return f"{a} × {b} = {a * b}."
    if b < 10 <= a:
        parts = [digit * 10**place for place, digit in enumerate(map(int, reversed(str(a)))) if digit][::-1]
        if len(parts) == 1:
            return f"{a} × {b} = {a * b}."
        return f"{a} × {b} = {steps([(part, b) for part in parts])} = {a * b}."
    parts = [digit * 10**place for place, digit in enumerate(map(int, reversed(str(b)))) if digit][::-1]
    if len(parts) == 1:
        return f"{a} × {b} = {a * b}."
    return f"{a} × {b} = {steps([(a, part) for part in parts])} = {a * b}."


def steps(pairs: list[tuple[int, int]]) -> str:
    written = " + ".join(f"{x} × {y}" for x, y in pairs)
    values = [x * y for x, y in pairs]
    out = f"{written} = {' + '.join(map(str, values))}"
    if len(values) > 2:
        out += f" = {values[0] + values[1]} + {' + '.join(map(str, values[2:]))}"
    return out


def quotient(a: int, b: int) -> str:
    """ "12", or "12 remainder 1", with the decimal where it is short."""
    whole, rest = divmod(a, b)
    if not rest:
        return str(whole)
    decimal = f" ({(Decimal(a) / b).normalize():f})" if b in (2, 4, 5, 10) else ""
    return f"{whole} remainder {rest}{decimal}"


def operands(rng: random.Random) -> tuple[int, str, int]:
    op = rng.choice("++--××/")
    if op == "/":
        if rng.random() < 0.6:
            b = rng.randrange(1, 13) if rng.random() < 0.7 else rng.randrange(2, 50)
            return b * rng.randrange(1, max(2, 99 // b + 1) if b > 12 else 13), op, b
        return rng.randrange(2, 100), op, rng.randrange(2, 13)
    a, b = number(rng), number(rng)
    if op == "×":
        if a > 99 and b > 9:
            b = rng.randrange(2, 10)
        if b > 99:
            a, b = b, rng.randrange(2, 10)
    if op == "-" and a < b and rng.random() < 0.8:
        a, b = b, a
    return a, op, b


def keys(a: int, op: str, b: int) -> tuple[str, ...]:
    """Sums of two numbers with two digits each are held out as such, in any words. Tables must be known by heart."""
    return (f"{a} {op} {b}",) if min(a, b) > 9 and op != "/" else ()


def phrase(rng: random.Random, a: int, op: str, b: int) -> str:
    if rng.random() < 0.3 and not (op == "-" and a < b):
        return rng.choice(WORDS[op]).replace("{a}", str(a)).replace("{b}", str(b))
    space = " " if rng.random() < 0.7 else ""
    return f"{a}{space}{rng.choice(SIGNS[op])}{space}{b}"


def plain(rng: random.Random) -> Dialogue:
    a, op, b = operands(rng)
    answer, end = answer_sum(a, op, b)
    ask = rng.choice(ASK)
    while ASK_ONLY.get(ask, op) != op:
        ask = rng.choice(ASK)
    text = phrase(rng, a, op, b)
    if "added to" in text:
        answer = f"{b} + {a} = {a + b}."
    return exchange("arithmetic", say(rng, (ask,), sum=text), answer, keys=keys(a, op, b), how="end", value=end)


def chain(rng: random.Random) -> Dialogue:
    """Several steps, half of them with reasoning switched on."""
    count, total = rng.choice((2, 2, 2, 3)), rng.randrange(2, 60)
    text, done, brackets = str(total), [], rng.random() < 0.3
    if brackets:
        a, b, c = rng.randrange(2, 20), rng.randrange(2, 20), rng.randrange(2, 10)
        text = rng.choice((f"({a} + {b}) * {c}", f"({a} + {b}) × {c}"))
        done = [f"{a} + {b} = {a + b}", product(a + b, c).rstrip(".")]
        total = (a + b) * c
    else:
        for _ in range(count):
            b = rng.randrange(2, 50)
            op = "+" if total < b else rng.choice("+-")
            done.append(f"{total} {op} {b} = {total + b if op == '+' else total - b}")
            total = total + b if op == "+" else total - b
            text += f" {op} {b}"
    question = say(rng, ASK[:6] + ASK[7:12] + ASK[13:], sum=text)
    answer = f"{text} = {total}."
    if rng.random() < 0.5:
        words = ["First, ", "then ", "then ", "then "]
        reasoning = (
            "; ".join(word + step for word, step in zip(words, done, strict=False)) + f". So the result is {total}."
        )
        return exchange("reasoning", question, answer, how="end", value=str(total), reasoning=reasoning)
    return exchange(
        "arithmetic", question, f"{', then '.join(done)}. The result is {total}.", how="end", value=str(total)
    )


def compare(rng: random.Random) -> Dialogue:
    a, b = number(rng), number(rng)
    while a == b:
        b = number(rng)
    kind = rng.randrange(4)
    high, low = max(a, b), min(a, b)
    if kind == 0:
        q = say(
            rng,
            (
                "Which is bigger, {a} or {b}?",
                "Which number is larger: {a} or {b}?",
                "What is more, {a} or {b}?",
                "bigger: {a} or {b}?",
                "Is {a} or {b} bigger?",
                "which is greater {a} or {b}",
            ),
            a=a,
            b=b,
        )
        return exchange(
            "arithmetic", q, f"{high} is bigger than {low}.", how="text", value=f"{high} is bigger than {low}"
        )
    if kind == 1:
        q = say(
            rng,
            (
                "Which is smaller, {a} or {b}?",
                "Which number is less: {a} or {b}?",
                "smaller: {a} or {b}?",
                "Is {a} or {b} smaller?",
                "what is the smaller number, {a} or {b}",
            ),
            a=a,
            b=b,
        )
        return exchange(
            "arithmetic", q, f"{low} is smaller than {high}.", how="text", value=f"{low} is smaller than {high}"
        )
    more = kind == 2
    q = say(
        rng,
        ("Is {a} bigger than {b}?", "Is {a} > {b}?", "Is {a} more than {b}?", "{a} > {b}?")
        if more
        else ("Is {a} smaller than {b}?", "Is {a} < {b}?", "Is {a} less than {b}?", "{a} < {b}?"),
        a=a,
        b=b,
    )
    yes = (a > b) == more
    answer = f"{'Yes' if yes else 'No'}, {a} is {'bigger' if a > b else 'smaller'} than {b}."
    return exchange("arithmetic", q, answer, how="text", value=answer)


def parity(rng: random.Random) -> Dialogue:
    a = number(rng)
    odd = a % 2 == 1
    q, yes = rng.choice((("Is {a} even?", not odd), ("Is {a} odd?", odd), ("Is {a} even or odd?", None)))
    word = "odd" if odd else "even"
    answer = f"{a} is {word}." if yes is None else f"{'Yes' if yes else 'No'}, {a} is {word}."
    return exchange("arithmetic", say(rng, (q,), a=a), answer, how="text", value=answer)


def simple(rng: random.Random) -> Dialogue:
    """Doubles, halves, squares, percentages."""
    kind = rng.randrange(4)
    if kind == 0:
        a = rng.randrange(1, 100)
        q = say(rng, ("What is double {a}?", "What is twice {a}?", "Double {a}", "Can you double {a}?"), a=a)
        return exchange("arithmetic", q, f"Twice {a} is {2 * a}.", how="end", value=str(2 * a))
    if kind == 1:
        a = 2 * rng.randrange(1, 100)
        q = say(rng, ("What is half of {a}?", "Halve {a}", "half of {a}?", "How much is half of {a}?"), a=a)
        return exchange("arithmetic", q, f"Half of {a} is {a // 2}.", how="end", value=str(a // 2))
    if kind == 2:
        a = rng.randrange(1, 21)
        q = say(rng, ("What is {a} squared?", "What is the square of {a}?", "{a}^2", "{a} squared"), a=a)
        return exchange("arithmetic", q, f"The square of {a} is {a * a}.", how="end", value=str(a * a))
    share = rng.choice((10, 20, 25, 50))
    a = rng.randrange(1, 50) * (100 // share)
    q = say(
        rng,
        ("What is {p}% of {a}?", "How much is {p} percent of {a}?", "{p}% of {a}", "Calculate {p}% of {a}."),
        p=share,
        a=a,
    )
    return exchange("arithmetic", q, f"{share}% of {a} is {a * share // 100}.", how="end", value=str(a * share // 100))


def problem(rng: random.Random) -> Dialogue:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    other = rng.choice([n for n in NAMES[:40] if n != name])
    a, b = rng.randrange(2, 60), rng.randrange(2, 40)
    kind = rng.randrange(4)
    if kind == 0:
        q = say(
            rng,
            (
                "{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?",
                "{n} has {a} {t}. {o} gives {n} {b} more. How many does {n} have?",
                "If {n} has {a} {t} and buys {b} more, how many {t} is that?",
            ),
            n=name,
            a=a,
            b=b,
            t=thing,
            o=other,
        )
        end, first = a + b, f"{a} + {b} = {a + b}"
    elif kind == 1:
        a, b = max(a, b) + 1, min(a, b)
        q = say(
            rng,
            (
                "{n} has {a} {t} and gives {b} to {o}. How many {t} are left?",
                "{n} had {a} {t} but lost {b}. How many does {n} have now?",
                "There are {a} {t}. {n} takes {b}. How many are left?",
            ),
            n=name,
            a=a,
            b=b,
            t=thing,
            o=other,
        )
        end, first = a - b, f"{a} - {b} = {a - b}"
    elif kind == 2:
        a, b = rng.randrange(2, 13), rng.randrange(2, 13)
        q = say(
            rng,
            (
                "{n} has {a} boxes with {b} {t} each. How many {t} are there?",
                "There are {a} bags of {b} {t}. How many {t} is that in total?",
                "{n} buys {b} {t} every day for {a} days. How many {t} does {n} buy?",
            ),
            n=name,
            a=a,
            b=b,
            t=thing,
        )
        end, first = a * b, f"{a} × {b} = {a * b}"
    else:
        b = rng.randrange(2, 11)
        a = b * rng.randrange(2, 11)
        q = say(
            rng,
            (
                "{n} shares {a} {t} among {b} friends. How many does each get?",
                "{a} {t} are put into {b} boxes. How many {t} are in each box?",
            ),
            n=name,
            a=a,
            b=b,
            t=thing,
        )
        end, first = a // b, f"{a} / {b} = {a // b}"
    answer = f"{first}, so the answer is {end}."
    if rng.random() < 0.25:
        return exchange("reasoning", q, f"The answer is {end}.", how="end", value=str(end), reasoning=f"{first}.")
    return exchange("arithmetic", q, answer, how="end", value=str(end))


def sequence(rng: random.Random) -> Dialogue:
    start, step = rng.randrange(0, 30), rng.choice((1, 2, 2, 3, 4, 5, 10, -1, -2))
    if step < 0:
        start += 20
    row = [start + i * step for i in range(5)]
    q = say(
        rng,
        ("What comes next: {r}?", "Which number comes next? {r}", "Continue: {r}", "{r}, ... what is next?"),
        r=", ".join(map(str, row[:4])),
    )
    return exchange("counting", q, f"The next number is {row[4]}.", how="end", value=str(row[4]))


def count(rng: random.Random) -> Dialogue:
    kind = rng.randrange(3)
    if kind == 0:
        a = rng.randrange(0, 40)
        b = a + rng.randrange(3, 15)
        row = range(a, b + 1)
        q = say(
            rng,
            (
                "Count from {a} to {b}.",
                "count from {a} up to {b}",
                "List the numbers from {a} to {b}",
                "Can you count from {a} to {b}?",
            ),
            a=a,
            b=b,
        )
    elif kind == 1:
        b = rng.randrange(0, 12)
        a = b + rng.randrange(3, 15)
        row = range(a, b - 1, -1)
        q = say(
            rng,
            ("Count down from {a} to {b}.", "Count backwards from {a} to {b}.", "Countdown from {a} to {b}"),
            a=a,
            b=b,
        )
    else:
        step, n = rng.choice((2, 3, 5, 10)), rng.randrange(4, 9)
        row = range(step, step * n + 1, step)
        q = say(
            rng,
            ("Count by {s}s to {b}.", "Count to {b} in steps of {s}.", "List the multiples of {s} up to {b}"),
            s=step,
            b=row[-1],
        )
    text = ", ".join(map(str, row))
    return exchange("counting", q, text, how="text", value=text)


MAKERS = ((plain, 14), (chain, 3), (compare, 3), (parity, 1), (simple, 2), (problem, 3), (sequence, 1), (count, 2))
