"""The mixture of dialogues, as a stream that a seed determines, and rows of tokens made of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from . import arithmetic, chat, dates, facts, follow, json_tasks, language, measures, stories, tool_tasks
from .bpe import Vocabulary
from .dialogue import Dialogue, Turn, join, segments

Maker = Callable[[random.Random], Dialogue]
TOPICS = (
    (arithmetic.MAKERS, 30),
    (measures.MAKERS, 8),
    (dates.MAKERS, 5),
    (follow.MAKERS, 5),
    (language.MAKERS, 14),
    (facts.MAKERS, 14),
    (chat.MAKERS, 13),
    (json_tasks.MAKERS, 13),
    (tool_tasks.MAKERS, 14),
    (stories.MAKERS, 4),
)
"""Topics and their weights"""
SESSION, SYSTEM = 0.22, 0.12
"""Shares of conversations with several subjects, and of those with a system message"""
PLAIN_WEIGHT = 0.3
"""Weight of the loss on text from books, and of whole rows with them"""
TAIL = 0.02
"""The last share of every book is held out"""


def pick(rng: random.Random, weighted: Sequence[tuple[Maker, int]]) -> Maker:
    total = sum(weight for _, weight in weighted)
    at = rng.randrange(total)
    for maker, weight in weighted:
        at -= weight
        if at < 0:
            return maker
    raise AssertionError("weights add up")


def topic(rng: random.Random) -> Maker:
    at = rng.randrange(sum(weight for _, weight in TOPICS))
    for makers, weight in TOPICS:
        at -= weight
        if at < 0:
            return pick(rng, makers)
    raise AssertionError("weights add up")


def single(rng: random.Random) -> Dialogue:
    return topic(rng)(rng)


def ordinary(rng: random.Random) -> Dialogue:
    """A dialogue without tools, system message and reasoning, for conversations with several subjects."""
    while True:
        made = single(rng)
        if not (made.tools or made.thinking or made.turns[0].role == "system"):
            return made


def session(rng: random.Random) -> Dialogue:
    if rng.random() < 0.3:
        return chat.memory(rng, tuple(ordinary(rng) for _ in range(rng.randrange(1, 4))))
    parts = [ordinary(rng) for _ in range(rng.randrange(2, 6))]
    if rng.random() < 0.3:
        parts.insert(0, chat.greeting(rng))
    made = join("session", parts)
    return Dialogue(parts[-1].kind, made.turns, keys=made.keys, expect=made.expect)


def dialogue(rng: random.Random) -> Dialogue:
    made = session(rng) if rng.random() < SESSION else single(rng)
    if made.turns[0].role != "system" and rng.random() < SYSTEM:
        turns = (Turn("system", rng.choice(chat.SYSTEMS)), *made.turns)
        made = Dialogue(made.kind, turns, made.tools, made.keys, made.expect, made.thinking)
    return made


def training(seed: int, worker: int = 0) -> Iterator[Dialogue]:
    """Dialogues without held-out ones, for ever."""
    rng = random.Random(f"train {seed} {worker}")
    while True:
        made = dialogue(rng)
        if not made.held_out:
            yield made


def held_out(seed: int, count: int, kinds: Sequence[str] = ()) -> list[Dialogue]:
    """Held-out dialogues with something to check, without repetition; of these kinds, or of all."""
    rng = random.Random(f"test {seed} {' '.join(kinds)}")
    found: dict[str, Dialogue] = {}
    while len(found) < count:
        made = dialogue(rng) if not kinds else single(rng)
        if made.held_out and made.expect.how and (not kinds or made.kind in kinds):
            found.setdefault(" | ".join(turn.content for turn in made.turns), made)
    return list(found.values())


def books(folder: Path | None) -> tuple[list[str], list[str]]:
    """(training parts, held-out ends) of the text files of a folder, in the order of their names."""
    if folder is None:
        return [], []
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in sorted(folder.rglob("*.txt"))]
    cuts = [int(len(text) * (1 - TAIL)) for text in texts]
    return [text[:cut] for text, cut in zip(texts, cuts, strict=True)], [
        text[cut:] for text, cut in zip(texts, cuts, strict=True)
    ]


def tokens_of(vocabulary: Vocabulary, made: Dialogue) -> tuple[list[int], list[int]]:
    """(tokens, weight in tenths of each as a target). Ends with <|endoftext|>."""
    ids: list[int] = []
    weights: list[int] = []
    for text, spoken in segments(made):
        part = vocabulary.encode(text)
        ids += part
        weights += [10 if spoken else 0] * len(part)
    return [*ids, vocabulary.end], [*weights, 0]


def passage(
    vocabulary: Vocabulary, rng: random.Random, texts: Sequence[str], weight: int
) -> tuple[list[int], list[int]]:
    """A piece of a book of about 500 tokens, from the start of a line."""
    text = rng.choices(texts, [len(text) for text in texts])[0]
    at = rng.randrange(max(1, len(text) - 1800))
    at = text.find("\n", at) + 1
    ids = vocabulary.encode(text[at : at + 1500])
    return [*ids, vocabulary.end], [*[weight] * len(ids), 0]


def rows(
    vocabulary: Vocabulary,
    seed: int,
    worker: int,
    length: int,
    texts: Sequence[str] = (),
    share: float = 0.02,
) -> Iterator[np.ndarray]:
    """uint16 [3, length]: tokens, weights of each as a target in tenths, and the number of the conversation in the row.

    Conversations are not cut: what does not fit waits for another row. `share` is that of books.
    """
    rng = random.Random(f"books {seed} {worker}")
    source = training(seed, worker)
    waiting: list[tuple[list[int], list[int]]] = []
    while True:
        row = np.zeros((3, length), np.uint16)
        row[0] = vocabulary.end
        at = number = 0
        while True:
            if len(waiting) < 12:
                book = bool(texts) and rng.random() < share
                made = (
                    passage(vocabulary, rng, texts, int(10 * PLAIN_WEIGHT))
                    if book
                    else tokens_of(vocabulary, next(source))
                )
                if len(made[0]) <= length:
                    waiting.append(made)
                continue
            fitting = next((i for i, (ids, _) in enumerate(waiting) if at + len(ids) <= length), None)
            if fitting is None:
                break
            ids, weights = waiting.pop(fitting)
            row[0, at : at + len(ids)], row[1, at : at + len(ids)], row[2, at : at + len(ids)] = ids, weights, number
            at, number = at + len(ids), number + 1
        row[2, at:] = number
        yield row
