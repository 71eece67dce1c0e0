"""Speculation on the demo model loses nothing: answers to held-out dialogues are those without it, token for token.

Guesses of the model's own head and of n-grams, 1 to 8 a row, one dialogue at a time and eight side by side. Steps have
up to 16 tokens, where bits do not depend on what else is in a step (`ops.api`). `make slow` runs all 200 dialogues.
"""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from grammars import Drawn, with_grammar

from blackwell_infer import Event, Sampling
from blackwell_infer.config import EngineConfig
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.head import Head
from blackwell_infer.engine.load import Loaded, load
from blackwell_infer.engine.request import Request, make_request
from blackwell_infer.engine.speculate import Speculation, Speculator
from blackwell_infer.engine.stream import Stream
from blackwell_infer.log import silent
from blackwell_infer.ops.batch import PenaltyState, SampleParams
from blackwell_infer.ops.ref import sample
from blackwell_infer.types import Grammar
from tools.demo_model.data import held_out
from tools.demo_model.dialogue import Dialogue
from tools.demo_model.score import messages

SEED, PROMPTS, LONGEST = 20261125, 200, 32
SOURCES = ("mtp", "ngram")
SCHEMA = json.dumps({
    "type": "object", "required": ["kind of answer", "count"], "additionalProperties": False, "properties": {
        "kind of answer": {"enum": ["a number", "a sentence", "neither of them"]}, "count": {"type": "integer"}}})
KINDS: dict[str, dict[str, Any]] = {
    "stop strings": {"temperature": 0.0, "stop": ("e", ". ", "2")},
    "log-probabilities": {"temperature": 0.7, "logprobs": 5},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    "draws and filters": {"temperature": 1.1, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
    "a mask": {"temperature": 0.8, "logprobs": 1},
    "a schema": {"temperature": 0.9, "logprobs": 1, "ignore_eos": True, "grammar": Grammar("json_schema", SCHEMA)},
    "a budget": {"temperature": 0.9, "logprobs": 1, "thinking_budget": 6}}
QUESTION, TEMPERATURE, SEEDS = "Tell me a story about a", 0.8, 20_000


@pytest.fixture(scope="module")
def found() -> Iterator[Loaded]:
    """The demo model with its head."""
    settings: dict[str, Any] = {"max_context": 512, "max_step_tokens": 16, "max_batch": 8, "speculate": "mtp"}
    loaded = load("demo", EngineConfig(device="numpy", **settings), silent)
    yield loaded
    loaded.runner.close()


def speculating(found: Loaded, source: str, depth: int) -> Engine:
    """An engine whose rows bring `depth` guesses wherever there is something to guess; none with depth 0."""
    if not depth:
        return Engine(found.runner, found.limits, found.text.tokenizer, found.info.vocab)
    head = Head(found.runner) if source == "mtp" else None  # type: ignore[arg-type]
    return Engine(found.runner, msgspec.structs.replace(found.limits, checked=16, reach=depth), found.text.tokenizer,
                  found.info.vocab, Speculator(Speculation(head is None, head is not None, depth, depth), head))


def asked(found: Loaded, made: Dialogue, sampling: Sampling) -> Request:
    """The last question of a dialogue."""
    variables: dict[str, Any] = {"enable_thinking": made.thinking} | ({"tools": list(made.tools)} if made.tools else {})
    return make_request(found.text, found.info.vocab, messages(made), sampling, variables)


def short(found: Loaded, count: int) -> list[Dialogue]:
    """Held-out dialogues whose prompts leave room for the answer."""
    made = held_out(SEED, 2 * count)
    room = found.limits.context - LONGEST
    return [one for one in made if len(asked(found, one, Sampling()).prompt) <= room][:count]


def answers(engine: Engine, requests: Sequence[Request], batch: int) -> list[list[Event]]:
    """Events of all requests, so many at a time."""
    events: list[list[Event]] = []
    for first in range(0, len(requests), batch):
        streams = [Stream(engine, request) for request in requests[first : first + batch]]
        while engine.step():
            pass
        events += [list(stream) for stream in streams]
    return events


def plain(events: list[list[Event]]) -> list[Any]:
    """All but times and what became of guesses."""
    return [[(e.text, e.reasoning, e.token_ids, e.logprobs, e.finish_reason, e.error) for e in one] for one in events]


class Greedy:
    """Greedy answers to so many dialogues, with log-probabilities, and what they are without guesses."""

    def __init__(self, found: Loaded, count: int) -> None:
        self.found = found
        made = short(found, count)
        self.requests = [asked(found, one, Sampling(temperature=0, max_tokens=LONGEST, logprobs=1)) for one in made]
        self.expected = plain(answers(speculating(found, "", 0), self.requests, 1))
        assert plain(answers(speculating(found, "", 0), self.requests, 8)) == self.expected, "alone and in a batch"

    def compare(self, source: str, depth: int, batch: int) -> tuple[int, int]:
        """Checked guesses, and those that held."""
        engine = speculating(self.found, source, depth)
        got = plain(answers(engine, self.requests, batch))
        wrong = [i for i, (a, b) in enumerate(zip(got, self.expected, strict=True)) if a != b]
        assert not wrong, f"{source}, depth {depth}, batch {batch}: dialogues {wrong} differ"
        return engine.stats().drafted_tokens, engine.stats().accepted_tokens


@pytest.fixture(scope="module")
def many(found: Loaded) -> Greedy:
    return Greedy(found, PROMPTS)


def compare_kinds(found: Loaded, count: int, depths: Sequence[int], what: str) -> None:
    """Answers under settings of a kind, whatever is guessed."""
    made, vocab = short(found, count), found.info.vocab

    def requests() -> list[Request]:
        plain = [asked(found, one, Sampling(seed=i, max_tokens=LONGEST, **KINDS[what])) for i, one in enumerate(made)]
        if what != "a mask":
            return plain
        return [with_grammar(request, [Drawn(i, vocab, 12, 300)], found.text.tokenizer.stop_ids)
                for i, request in enumerate(plain)]

    expected = plain(answers(speculating(found, "", 0), requests(), 1))
    if what == "a schema":
        check_schema(expected)
    for source in SOURCES:
        for depth, batch in zip(depths, (1, 8) * len(depths), strict=False):
            got = plain(answers(speculating(found, source, depth), requests(), batch))
            assert got == expected, f"{what}: {source}, depth {depth}, batch {batch}"


def check_schema(events: list[Any]) -> None:
    """Answers that came to their end are what the schema says, although `ignore_eos` was asked for."""
    ended = 0
    for one in events:
        text, finish = "".join(event[0] for event in one), one[-1][4]
        assert finish in ("stop", "length")
        if finish == "stop":
            value, ended = json.loads(text), ended + 1
            assert list(value) == ["kind of answer", "count"] and type(value["count"]) is int
    assert ended > 0


def test_greedy_answers_are_those_without_guesses(found: Loaded) -> None:
    few = Greedy(found, 6)
    for source in SOURCES:
        for depth, batch in ((1, 8), (4, 1), (4, 8)):
            drafted, held = few.compare(source, depth, batch)
            assert source == "ngram" or held > 0.4 * drafted > 0


@pytest.mark.parametrize("what", KINDS)
def test_every_kind_of_settings_is_left_as_it_is(found: Loaded, what: str) -> None:
    compare_kinds(found, 3, (2,), what)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize("source", SOURCES)
def test_200_greedy_answers_are_those_without_guesses(many: Greedy, source: str, depth: int, batch: int) -> None:
    assert len(many.requests) == PROMPTS
    drafted, held = many.compare(source, depth, batch)
    print(f"{source}, depth {depth}, batch {batch}: {held} of {drafted} guesses held")
    assert held > (0.1 * drafted if source == "mtp" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("what", KINDS)
def test_every_kind_of_settings_over_40_dialogues(found: Loaded, what: str) -> None:
    compare_kinds(found, 40, (1, 3, 5, 8), what)


def test_the_first_three_tokens_follow_the_distribution_over_20_000_seeds(found: Loaded) -> None:
    """The sampler is a function of logits, seed and position, so its draws are taken from the logits of every beginning
    at once; engines with guesses must give these very tokens."""
    prompt = tuple(found.text.tokenizer.encode(QUESTION))
    logits: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}

    def after(said: tuple[int, ...]) -> np.ndarray[Any, Any]:
        if said not in logits:
            engine = speculating(found, "", 0)
            _, future = engine.score(prompt + said, True)
            while engine.step():
                pass
            values = future.result().logits
            assert values is not None
            logits[said] = values[-1]
        return logits[said]

    seeds, drawn = np.arange(SEEDS), [()] * SEEDS  # type: list[tuple[int, ...]]
    for place in range(3):
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, said in enumerate(drawn):
            groups.setdefault(said, []).append(i)
        for said, members in groups.items():
            tokens = draws(after(said), seeds[members], len(prompt) + place)
            for i, token in zip(members, tokens, strict=True):
                drawn[i] = (*said, int(token))
    assert chi_square(drawn, after) < 5.0
    for source in SOURCES:
        requests = [make_request(found.text, found.info.vocab, list(prompt), Sampling(
            temperature=TEMPERATURE, top_k=4, max_tokens=4, seed=int(seed), ignore_eos=True), {}) for seed in range(48)]
        events = answers(speculating(found, source, 3), requests, 4)
        assert [tuple(t for e in one for t in e.token_ids)[:3] for one in events] == drawn[:48], source


def draws(logits: np.ndarray[Any, Any], seeds: np.ndarray[Any, Any], position: int) -> np.ndarray[Any, Any]:
    """One token per seed from the same logits [V]."""
    n, vocab = len(seeds), len(logits)
    off, none = np.zeros(n, np.float32), np.full(n, -1, np.int32)
    params = SampleParams(
        temperature=np.full(n, TEMPERATURE, np.float32), top_k=np.full(n, 4, np.int32), top_p=off + 1, min_p=off,
        repetition=off + 1, presence=off, frequency=off, seed=seeds.astype(np.uint64),
        position=np.full(n, position, np.int32), slot=none, guess=none, bias_starts=np.zeros(n + 1, np.int32),
        bias_ids=np.zeros(0, np.int32), bias_values=off[:0])
    state = PenaltyState(np.zeros((0, vocab), np.int32), np.zeros((0, vocab), np.uint8))
    return np.asarray(sample.sample_(state, np.broadcast_to(logits, (n, vocab)), params).tokens)


def chi_square(drawn: Sequence[tuple[int, ...]], after: Any) -> float:
    """How far the counts of beginnings of three tokens lie from float64 softmax over the four likeliest tokens, in
    standard deviations of chi-square; rare beginnings are one bin."""
    seen, bins, rest = Counter(drawn), [(0.0, 0)], 0.0
    for one, two, three in seen:
        p = 1.0
        for said, token in (((), one), ((one,), two), ((one, two), three)):
            z = np.sort(after(said).astype(np.float64))[::-1][:4]
            p *= float(np.exp((after(said)[token] - z[0]) / TEMPERATURE) / np.exp((z - z[0]) / TEMPERATURE).sum())
        bins.append((p * len(drawn), seen[one, two, three]))
    rest = len(drawn) - sum(expected for expected, _ in bins if expected >= 5)
    kept = [(e, n) for e, n in bins if e >= 5] + [(rest, len(drawn) - sum(n for e, n in bins if e >= 5))]
    value = sum((n - e) ** 2 / e for e, n in kept if e > 0.5)
    degrees = len(kept) - 1
    return float((value - degrees) / np.sqrt(2 * degrees))
