"""What guesses are worth, and guesses from what stood before: pure functions."""
from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackwell_infer.engine.guesses import MOST, PRIOR, Cost, Costs, Rates, accepted, depth, leveled
from blackwell_infer.engine.ngrams import Ngrams
from blackwell_infer.engine.speculate import Counts, Speculation

few = st.lists(st.integers(0, 2), max_size=6)


@given(few, few)
def test_guesses_hold_up_to_the_first_that_was_not_sampled(guesses: list[int], sampled: list[int]) -> None:
    sampled = [*sampled, *[9] * 7]
    held = accepted(guesses, sampled)
    assert guesses[:held] == sampled[:held]
    assert held == len(guesses) or guesses[held] != sampled[held]


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(-3, 40))
def test_room_is_shared_evenly(wanted: list[int], room: int) -> None:
    given = leveled(wanted, room)
    assert sum(given) == min(sum(wanted), max(room, 0))
    assert all(g <= w for g, w in zip(given, wanted, strict=True))
    short = [g for g, w in zip(given, wanted, strict=True) if g < w]
    assert not short or max(given) - min(short) <= 1


def test_depth_follows_acceptance_and_cost() -> None:
    def at(rate: float, token: float, guess: float = 0.0, rows: int = 1) -> int:
        return depth(Rates((rate,) * MOST), Cost(1.0, token, guess), rows, 8)

    assert at(1.0, 0.01) == 8 and at(0.0, 0.01) == 0
    assert at(0.7, 0.02) > at(0.4, 0.02) >= 1
    assert at(0.7, 0.02) > at(0.7, 0.5) > at(0.7, 5.0) == 0, "where tokens are what costs, none is worth it"
    assert at(0.7, 0.02, 0.1) < at(0.7, 0.02), "the head's own time counts"
    assert at(0.7, 0.02, 0.0, 16) < at(0.7, 0.02), "many rows share the cost of a step already"
    fails = Rates((0.9, 0.0) + (1.0,) * (MOST - 2))
    assert depth(fails, Cost(1.0, 0.01), 1, 8) == 1, "nothing holds after one that fails"


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_depth_is_the_best_of_all(rate: float) -> None:
    cost, rows, rates = Cost(1.0, 0.05, 0.03), 2, Rates((rate,) * MOST)
    speeds = [sum(rate**i for i in range(n + 1)) / ((1 + n * 0.03) / 2 + (1 + n) * 0.05) for n in range(9)]
    assert depth(rates, cost, rows, 8) == speeds.index(max(speeds))
    assert rates.expected(3) == pytest.approx(rate + rate**2 + rate**3)


def test_rates_approach_what_is_seen_and_forget() -> None:
    draw, rates = random.Random(0), Rates()
    for _ in range(400):
        rates = rates.checked(3, next((i for i in range(3) if draw.random() > 0.8), 3))
    assert all(0.6 < rate < 0.95 for rate in rates.at[:3]) and rates.at[3:] == (PRIOR,) * (MOST - 3)
    for _ in range(200):
        rates = rates.checked(3, 0)
    assert rates.at[0] < 0.01 and rates.at[1] > 0.5, "what was not reached was not seen"
    for _ in range(5000):
        rates = rates.rested()
    assert rates.at[0] == pytest.approx(PRIOR, abs=0.01), "bad guesses are tried again, later"


def test_costs_are_a_line_through_what_steps_took() -> None:
    assert Costs().line() == Cost(1.0, 0.02)
    costs = Costs()
    for _ in range(50):
        costs = costs.measured(1, 2.0)
    assert costs.line().step == pytest.approx(2.0 / 1.02) and costs.line().token == pytest.approx(0.04 / 1.02)
    for i in range(200):
        costs = costs.measured(1 + i % 5, 2.0 + 0.3 * (i % 5))
    assert costs.line().step == pytest.approx(1.7) and costs.line().token == pytest.approx(0.3)
    for i in range(200):
        costs = costs.measured(1 + i % 5, 2.0 - 0.3 * (i % 5))
    line = costs.line()
    assert line.token == pytest.approx(0.02 * line.step) and line.step > 0, "noise gives no free tokens"


def test_what_followed_the_same_words_is_guessed() -> None:
    text = Ngrams()
    text.extend([1, 2, 3, 4, 5, 9, 8, 1, 2, 3])
    assert text.guess(4) == (3, (4, 5, 9, 8))
    text.extend([4, 5])
    assert text.guess(3) == (5, (9, 8, 1))
    text.extend([7])
    assert text.guess(3) == (0, ())
    text.extend([9, 8])
    assert text.guess(2) == (2, (1, 2))


def test_the_latest_occurrence_wins_and_a_loop_goes_on() -> None:
    text = Ngrams()
    text.extend([1, 2, 5, 1, 2, 6, 1, 2])
    assert text.guess(2) == (2, (6, 1))
    loop = Ngrams()
    loop.extend([7, 4, 4, 4, 4])
    assert loop.guess(5) == (3, (4,) * 5)
    loop.extend([1, 2, 3] * 3)
    assert loop.guess(7) == (5, (1, 2, 3, 1, 2, 3, 1))
    assert Ngrams().guess(3) == (0, ())


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_guesses_of_words_stand_somewhere_before(tokens: list[int], count: int) -> None:
    text = Ngrams()
    for token in tokens:
        text.extend([token])
    size, guess = text.guess(count)
    assert (size == 0) == (guess == ())
    if size:
        ending = tokens[len(tokens) - size :]
        places = [i for i in range(len(tokens) - size) if tokens[i : i + size] == ending]
        assert tokens[places[-1] + size] == guess[0]


def test_counts_by_place() -> None:
    counts = Counts().checked(3, 2).checked(1, 0).checked(5, 5)
    assert counts == Counts((3, 2, 2, 1, 1), (2, 2, 1, 1, 1))


def test_settings_without_a_source_speculate_nothing() -> None:
    assert Speculation(ngrams=False, head=False, least=0, most=8).started(None) is None
    assert Speculation(ngrams=True, head=False, least=0, most=8).started(None) is not None
