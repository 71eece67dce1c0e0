"""The likeliest tokens of scored places."""
from __future__ import annotations

import numpy as np
import pytest

from blackwell_infer.engine.runner import Result
from blackwell_infer.engine.scoring import Scoring, likeliest


@pytest.mark.parametrize("vocab", [7, 128, 300, 1024, 1500])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_the_likeliest_are_those_of_a_stable_sort(vocab: int, count: int) -> None:
    rng = np.random.default_rng(vocab + count)
    coarse = rng.integers(0, 9, (40, vocab)).astype(np.float32)
    for logits in (rng.standard_normal((40, vocab)).astype(np.float32), coarse, np.zeros((3, vocab), np.float32)):
        expected = np.argsort(-logits, 1, kind="stable")[:, :count]
        np.testing.assert_array_equal(likeliest(logits, min(count, vocab)), expected)


@pytest.mark.parametrize("chunks", [(12,), (5, 7), (1, 10, 1), (11, 1)])
def test_chunks_add_up(chunks: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    tokens, logits = tuple(rng.integers(0, 200, 12).tolist()), rng.standard_normal((12, 200)).astype(np.float32)
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    scoring, start = Scoring(0, tokens, 200, False, 3), 0
    for count in chunks:
        here = slice(start, start + count)
        own = [logprobs[i, tokens[i + 1]] if i < 11 else 0.0 for i in range(start, start + count)]
        padding = np.zeros((2, 200), np.float32)
        result = Result(None, np.asarray([9, 9, *own], np.float32), np.concatenate((padding, logits[here])))
        scoring.take(start, 2, count, result)
        start += count
    found = scoring.result
    assert found.top_ids is not None and found.top_logprobs is not None and found.logits is None
    assert found.top_ids[0].tolist() == [-1, -1, -1] and not found.top_logprobs[0].any()
    np.testing.assert_array_equal(found.top_ids[1:], np.argsort(-logits[:11], 1)[:, :3])
    np.testing.assert_allclose(found.top_logprobs[1:], -np.sort(-logprobs[:11], 1)[:, :3], atol=1e-5)
