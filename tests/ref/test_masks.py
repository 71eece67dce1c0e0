"""Grammars through the engine on NumPy: answers follow their matchers, the same with and without guesses."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import ROOT
from grammars import Drawn, with_grammar

from blackwell_infer import Event, Sampling
from blackwell_infer.config import EngineConfig
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.load import Loaded, load
from blackwell_infer.engine.masks import Grammars
from blackwell_infer.engine.request import make_request
from blackwell_infer.engine.scheduler import Plan, Row
from blackwell_infer.engine.speculate import Speculation, Speculator
from blackwell_infer.engine.stream import Stream
from blackwell_infer.log import silent

KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "logprobs": 2}, {"temperature": 0.9, "logprobs": 0}, {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 0.7, "repetition_penalty": 1.4, "frequency_penalty": 0.3}, {"temperature": 0.5, "n": 3},
    {"temperature": 0.0, "logit_bias": {5: 2.0, 8: -3.0}}, {"temperature": 0.8, "ignore_eos": True})
LENGTHS = (9, 14, 30)


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[[str], Loaded]]:
    """Loads a tiny model with steps of up to 16 tokens, once."""
    found: dict[str, Loaded] = {}

    def make(name: str) -> Loaded:
        if name not in found:
            config = EngineConfig(device="numpy", max_context=128, max_step_tokens=16, max_batch=8)
            found[name] = load(str(ROOT / "tests" / "data" / name), config, silent)
        return found[name]

    yield make
    for loaded in found.values():
        loaded.runner.close()


def engine_over(found: Loaded, depth: int = 0, pages: int | None = None, batch: int = 8) -> Engine:
    """An engine, with `depth` guesses of n-grams and grammars in every row if there are any."""
    limits = msgspec.structs.replace(found.limits, batch=batch)
    limits = limits if pages is None else msgspec.structs.replace(limits, pages=pages, reuse=False)
    if not depth:
        return Engine(found.runner, limits, found.text.tokenizer, found.info.vocab)
    return Engine(found.runner, msgspec.structs.replace(limits, checked=16, reach=depth), found.text.tokenizer,
                  found.info.vocab, Speculator(Speculation(True, False, depth, depth), None))


def answers(engine: Engine, found: Loaded, count: int = 14, **matcher: Any) -> list[tuple[list[Event], list[Drawn]]]:
    """Events and matchers of requests of every kind, every third of them without a grammar."""
    streams = []
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        sampling = Sampling(seed=i, max_tokens=20, **kind)
        request = make_request(found.text, found.info.vocab, [7 + i, 3, 9, 11] * 6, sampling, {})
        drawn = [Drawn(100 * i + j, found.info.vocab, LENGTHS[i % 3], **matcher) for j in range(sampling.n)]
        request = with_grammar(request, drawn, found.text.tokenizer.stop_ids) if i % 3 != 2 else request
        streams.append((Stream(engine, request), drawn if i % 3 != 2 else []))
    while engine.step():
        pass
    return [(list(stream), drawn) for stream, drawn in streams]


def plain(found: list[tuple[list[Event], list[Drawn]]]) -> list[Any]:
    """Everything but times and what became of guesses."""
    return [[(e.index, e.text, e.token_ids, e.logprobs, e.finish_reason, e.error)
             for e in sorted(events, key=lambda e: e.index)] for events, _ in found]


def check(found: list[tuple[list[Event], list[Drawn]]], ends: frozenset[int]) -> None:
    """Every answer with a grammar is one of it, and ends where it ends."""
    for events, drawn in found:
        for j, matcher in enumerate(drawn):
            said = [t for e in events if e.index == j for t in e.token_ids]
            (finish,) = [e.finish_reason for e in events if e.index == j and e.finish_reason]
            assert finish == ("stop" if matcher.length < 20 else "length"), finish
            body = said[: matcher.length]
            assert matcher.said == body and len(said) == min(matcher.length + 1, 20)
            assert all(t in matcher.allowed(body[:k]) for k, t in enumerate(body))
            assert len(said) == len(body) or said[-1] in ends


@pytest.mark.parametrize("name", ["llama", "qwen3_5"])
def test_answers_follow_their_grammars_with_and_without_guesses(opened: Callable[[str], Loaded], name: str) -> None:
    found = opened(name)
    expected = answers(engine_over(found), found)
    check(expected, found.text.tokenizer.stop_ids)
    drafted = accepted = 0
    for depth, batch in ((1, 8), (1, 2), (3, 3), (8, 1)):
        engine = engine_over(found, depth, batch=batch)
        got = answers(engine, found)
        assert plain(got) == plain(expected), depth
        check(got, found.text.tokenizer.stop_ids)
        drafted, accepted = drafted + engine.stats().drafted_tokens, accepted + engine.stats().accepted_tokens
    assert accepted > 0.9 * drafted > 60, "what a grammar leaves no choice about holds"


def test_sequences_that_lose_their_pages_stay_in_their_grammars(opened: Callable[[str], Loaded]) -> None:
    found = opened("llama")
    expected = answers(engine_over(found), found, 8)
    for depth in (0, 3):
        engine = engine_over(found, depth, pages=5)
        assert plain(answers(engine, found, 8)) == plain(expected)
        assert engine.stats().preemptions > 0 or depth


def test_a_grammar_that_fails_ends_its_answer_only(opened: Callable[[str], Loaded]) -> None:
    found = opened("llama")
    for depth in (0, 2):
        for matcher, message in (({"breaks": 4}, "broken"), ({"refuses": 4}, "does not go on")):
            got = answers(engine_over(found, depth), found, 8, **matcher)
            for events, drawn in got:
                for j in range(len(drawn)):
                    (last,) = [e for e in events if e.index == j and e.finish_reason]
                    assert last.finish_reason == "error" and message in str(last.error)
                    said = sum(len(e.token_ids) for e in events if e.index == j)
                    assert said == 4 or (said < 4 and depth and "breaks" in matcher), "guesses come to the break first"
            assert plain(got)[2::3] == plain(answers(engine_over(found), found, 8))[2::3]


def test_masks_stop_behind_a_guess_that_the_grammar_excludes_and_behind_an_end() -> None:
    grammars = Grammars(70, frozenset({69}))
    matcher = Drawn(1, 70, 3)
    first = min(matcher.allowed([]))
    grammars.add(4, matcher)
    (wrong, *_) = set(range(69)) - matcher.allowed([first])
    rows = (row(1, ()), row(4, (first, wrong, 5)), row(2, (6,)))
    mask, failed = grammars.masks(Plan(rows))
    assert mask.rows.tolist() == [-1, 0, 1, -1, -1, -1, -1] and mask.words.shape == (2, 3) and not failed
    bits = np.unpackbits(np.asarray(mask.words).view(np.uint8), axis=1, bitorder="little")
    assert set(np.flatnonzero(bits[0])) == matcher.allowed([])
    assert set(np.flatnonzero(bits[1])) == matcher.allowed([first])
    assert matcher.said == [], "guesses are taken back"
    assert grammars.masks(Plan((row(4, (69, 5)),)))[0].rows.tolist() == [0, -1, -1]
    assert grammars.fitting(4, (first, wrong, 5)) == (first,) and grammars.fitting(4, (first, 69, 5)) == (first, 69)
    assert grammars.fitting(9, (1, 2)) == (1, 2) and grammars.forced(9) == ()
    while not matcher.ended:
        grammars.accept(4, min(matcher.allowed(matcher.said)))
    bits = np.unpackbits(np.asarray(grammars.masks(Plan((row(4, ()),)))[0].words).view(np.uint8), bitorder="little")
    assert np.flatnonzero(bits).tolist() == [69]


def test_without_end_tokens_an_answer_is_over_where_its_grammar_is() -> None:
    grammars, matcher = Grammars(70, frozenset()), Drawn(1, 70, 2)
    grammars.add(0, matcher)
    assert [grammars.accept(0, min(matcher.allowed(matcher.said))) for _ in range(2)] == [False, True]


def row(id: int, guesses: tuple[int, ...]) -> Row:
    return Row(id=id, slot=id, tokens=(0, *guesses), start=3, pages=(0,), new_pages=0, restart=False, samples=True,
               scores=False, guesses=len(guesses))


