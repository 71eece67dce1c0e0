"""The reference sampler against plain float64 probability."""
from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from blackwell_infer.ops.batch import PenaltyState, SampleParams, TokenMask
from blackwell_infer.ops.ref import sample


def params(n: int, *, bias: tuple[tuple[int, float], ...] = (), **settings: Any) -> SampleParams:
    """Settings of n rows, all alike except where an array is given; the bias goes to row 0."""
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition": 1.0, "presence": 0.0,
           "frequency": 0.0, "seed": 1, "position": 0, "slot": -1, "guess": -1}
    kinds = {"top_k": np.int32, "seed": np.uint64, "position": np.int32, "slot": np.int32, "guess": np.int32}
    top = settings.pop("top", 0)
    rows = {k: np.broadcast_to(np.asarray(settings.get(k, v), kinds.get(k, np.float32)), (n,)) for k, v in off.items()}
    starts = np.full(n + 1, len(bias), np.int32)
    starts[0] = 0
    return SampleParams(**rows, bias_starts=starts, bias_ids=np.array([i for i, _ in bias], np.int32),
                        bias_values=np.array([b for _, b in bias], np.float32), top=top)


def state(vocab: int) -> PenaltyState:
    return PenaltyState(np.zeros((2, vocab), np.int32), np.zeros((2, vocab), np.uint8))


def draws(logits: np.ndarray[Any, Any], n: int, **settings: Any) -> np.ndarray[Any, Any]:
    """n draws from one distribution, at positions 0..n-1."""
    rows = np.broadcast_to(logits.astype(np.float32), (n, len(logits)))
    return np.asarray(sample.sample_(state(len(logits)), rows, params(n, position=np.arange(n), **settings)).tokens)


def softmax(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(z - z.max())
    return e / e.sum()


def test_philox_matches_the_published_vector() -> None:
    assert sample.philox(0, 0) == 0xE169C58D6627E8D5


def test_exp_is_accurate_to_two_ulp() -> None:
    x = -np.linspace(0, 79, 100001).astype(np.float32)
    assert np.abs(sample.exp_f32(x) / np.exp(x.astype(np.float64)) - 1).max() < 2.5e-7
    assert sample.exp_f32(np.float32([-81.0, -np.inf])).tolist() == [0.0, 0.0]


def test_draws_follow_the_distribution() -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0, -np.inf, 0.5])
    n = 20000
    p = softmax(logits / 0.7)
    seen = np.bincount(draws(logits, n, temperature=0.7), minlength=6)
    expected = p * n
    used = expected > 0
    assert seen[4] == 0
    assert (((seen - expected)[used] ** 2) / expected[used]).sum() < 20.5  # chi-square, 4 degrees, p = 0.0004


@pytest.mark.parametrize(("settings", "allowed"), [
    ({"top_k": 2}, {0, 1}),
    ({"top_k": 3}, {0, 1, 2, 5}),                    # 2 and 5 tie at the boundary: both stay
    ({"top_p": 0.5}, {0}),
    ({"top_p": 0.9}, {0, 1, 2, 5}),
    ({"min_p": 0.3}, {0, 1}),
    ({"top_k": 4, "top_p": 0.75}, {0, 1}),           # top_p counts what top_k left
])
def test_filters_keep_exactly(settings: dict[str, float], allowed: set[int]) -> None:
    logits = np.log(np.array([0.5, 0.2, 0.1, 0.06, 0.04, 0.1]))
    assert set(draws(logits, 3000, **settings).tolist()) == allowed


def test_a_mask_leaves_the_distribution_of_what_it_allows() -> None:
    """Bits of a word count from the lowest; penalties, filters and the draw see nothing else, log-probabilities all."""
    logits = np.linspace(1, 0, 70).astype(np.float32)
    allowed, n = [3, 31, 32, 69], 8000
    words = np.zeros((2, 3), np.uint32)
    for token in allowed:
        words[1, token // 32] |= np.uint32(1 << token % 32)
    rows = np.broadcast_to(logits, (n, 70))
    free = params(n, position=np.arange(n))
    got = sample.sample_(state(70), rows, msgspec.structs.replace(free, mask=TokenMask(np.ones(n, np.int32), words)))
    seen, expected = np.bincount(got.tokens, minlength=70), softmax(logits[allowed]) * n
    assert set(np.flatnonzero(seen)) == set(allowed)
    assert ((seen[allowed] - expected) ** 2 / expected).sum() < 18.5  # chi-square, 3 degrees, p = 0.0003
    assert np.allclose(got.logprobs, np.log(softmax(logits))[got.tokens], atol=1e-5)
    bare = sample.sample_(state(70), rows, free)
    same = sample.sample_(state(70), rows, msgspec.structs.replace(free, mask=TokenMask(np.full(n, -1), words)))
    assert np.array_equal(bare.tokens, same.tokens)


def test_greedy_takes_the_lowest_of_equals_and_ignores_nan() -> None:
    logits = np.float32([[1, np.nan, 3, 3, -np.inf], [np.nan] * 5, [-np.inf] * 5, [0, np.inf, 0, 0, np.inf]])
    got = sample.sample_(state(5), logits, params(4, temperature=0.0, top=3))
    assert np.asarray(got.tokens).tolist() == [2, -1, -1, 1]
    assert np.asarray(got.top_ids)[0].tolist() == [2, 3, 0]
    assert np.asarray(got.top_ids)[1].tolist() == [-1, -1, -1]


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    logits = np.float32([[1.0, 2.0, 3.0, -4.0]])
    got = sample.sample_(state(4), logits, params(1, temperature=0.0, top=2, bias=((3, 100.0),)))
    logp = np.log(softmax(logits[0].astype(np.float64)))
    assert np.asarray(got.tokens).tolist() == [3]
    np.testing.assert_allclose(np.asarray(got.logprobs), [logp[3]], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(got.top_logprobs)[0], logp[[2, 1]], rtol=1e-6)


def test_penalties() -> None:
    s = state(4)
    sample.penalty_load_(s, 1, np.int32([0, 0, 1]), np.int32([2, 2]))
    logits = np.float32([[4.0, -1.0, 3.0, 1.0]])
    p = params(1, temperature=0.0, slot=1, repetition=2.0, presence=0.25, frequency=0.5)
    np.testing.assert_array_equal(sample.adjust(logits[0], p, 0, s), np.float32([2.0, -2.0, 0.25, 1.0]))
    assert np.asarray(sample.sample_(s, logits, p).tokens).tolist() == [0]
    assert s.counts[1].tolist() == [1, 0, 2, 0] and s.counts[0].sum() == 0
    sample.penalty_load_(s, 1, np.int32([3]), np.int32([]))
    assert s.counts[1].sum() == 0 and s.prompt[1].tolist() == [0, 0, 0, 1]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((16, 300)).astype(np.float32) * 3
    seeds = rng.integers(0, 2**63, 16).astype(np.uint64)
    together = sample.sample_(state(300), logits, params(16, seed=seeds, top_k=40, top_p=0.9, position=7))
    for i in range(16):
        alone = sample.sample_(state(300), logits[i : i + 1], params(1, seed=seeds[i], top_k=40, top_p=0.9, position=7))
        assert np.asarray(alone.tokens)[0] == np.asarray(together.tokens)[i]


def test_token_logprobs() -> None:
    logits = np.float32([[0.0, 1.0, 2.0], [5.0, np.nan, 5.0]])
    got = np.asarray(sample.token_logprobs(logits, np.int32([2, -1])))
    np.testing.assert_allclose(got, [np.log(softmax(np.float64([0, 1, 2])))[2], 0.0], rtol=1e-6)
