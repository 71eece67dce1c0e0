"""Embeddings: against a plain forward pass, in batches, in chunks, beside answers."""
from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from harness import Model

from blackwell_infer import LLM, RequestError, Sampling
from blackwell_infer.checkpoint.hub import SHIPPED
from blackwell_infer.ops import ref

TEXTS = ["What is 12 times 12?", "A", "The weather in Paris is mild in spring, and rainy in autumn. " * 4]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(device="numpy", dtype="float32", max_context=256) as loaded:
        yield loaded


def plain(llm: LLM, text: str, pooling: str) -> np.ndarray[Any, Any]:
    """A forward pass of the whole text by itself."""
    model = Model(SHIPPED, context=256)
    batch = model.batch(llm.tokenizer.encode(text))
    hidden = np.asarray(model.family.forward(ref, model.cfg, model.params, model.state, batch, "float32"), np.float64)
    pooled = hidden[-1] if pooling == "last" else hidden.mean(axis=0)
    return pooled / np.sqrt((pooled**2).sum())


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_those_of_a_plain_forward_pass(llm: LLM, pooling: Any) -> None:
    got = llm.embed(TEXTS, pooling)
    assert got.dtype == np.float32 and got.shape[0] == 3
    np.testing.assert_allclose(got, [plain(llm, t, pooling) for t in TEXTS], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(llm.embed(TEXTS[0], pooling), got[0], atol=1e-5)
    assert abs(got[0] @ got[1]) < 0.999


def test_chunks_scores_and_answers_beside_them_change_nothing(llm: LLM) -> None:
    expected = llm.embed(TEXTS, "mean")
    ids = list(llm.tokenizer.encode(TEXTS[2]))
    scores = llm.score(ids).logprobs
    with LLM(device="numpy", dtype="float32", max_context=256, max_batch=4, max_step_tokens=16) as small:
        async def together() -> list[Any]:
            return list(await asyncio.gather(
                small.aembed(TEXTS, "mean"), small.agenerate("Hello", Sampling(temperature=0, max_tokens=12)),
                small.ascore(ids), small.aembed(TEXTS[2], "mean"), small.aembed(ids, "mean")))

        many, answer, scored, one, again = asyncio.run(together())
        np.testing.assert_allclose(many, expected, atol=1e-5)
        np.testing.assert_allclose(one, expected[2], atol=1e-5)
        np.testing.assert_allclose(again, expected[2], atol=1e-5)
        np.testing.assert_allclose(scored.logprobs, scores, atol=1e-4)
        assert len(answer.choices[0].token_ids) > 0


def test_what_cannot_be_embedded_is_refused(llm: LLM) -> None:
    for wrong, says in (([1] * 257, "257 tokens"), ([10**9], "vocabulary"), (["ok", []], "empty")):
        with pytest.raises(RequestError, match=says):
            llm.embed(wrong)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="last, mean"):
        llm.embed("a", "first")  # type: ignore[arg-type]
    assert llm.embed([1] * 256).ndim == 1
    assert llm.stats().pages_used == 0


def test_nothing_to_embed(llm: LLM) -> None:
    with pytest.raises(RequestError, match="nothing to embed"):
        llm.embed([])
