"""Embeddings as OpenAI's own client sees them."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from api_documents import validate
from served import idle, serving

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.serve.host import Host

TEXTS = ["What is 12 times 12?", "Paris", "A cat sat on the mat."]


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address + "/v1", api_key="any", max_retries=0, timeout=60) as made:
        yield made


def vectors(got: Any) -> np.ndarray[Any, Any]:
    assert [d.index for d in got.data] == list(range(len(got.data)))
    return np.asarray([d.embedding for d in got.data])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_client_gets_the_models_vectors(client: openai.OpenAI, llm: LLM, pooling: Any) -> None:
    expected = llm.embed(TEXTS, pooling)
    more = {"extra_body": {"pooling": pooling}}
    # The client asks for base64 by itself and decodes it.
    got = client.embeddings.create(model="demo", input=TEXTS, **more)
    np.testing.assert_allclose(vectors(got), expected, atol=1e-3)
    plain = client.embeddings.create(model="demo", input=TEXTS, encoding_format="float", **more)
    np.testing.assert_allclose(vectors(plain), expected, atol=1e-3)
    ids = [list(llm.tokenizer.encode(text)) for text in TEXTS]
    assert got.usage.prompt_tokens == got.usage.total_tokens == sum(map(len, ids))
    np.testing.assert_allclose(vectors(client.embeddings.create(model="demo", input=ids, **more)), expected, atol=1e-3)
    for one in (TEXTS[0], ids[0]):
        alone = client.embeddings.create(model="demo", input=one, **more)
        np.testing.assert_allclose(vectors(alone), expected[:1], atol=1e-3)


def test_fewer_dimensions_are_scaled_again(client: openai.OpenAI) -> None:
    whole = vectors(client.embeddings.create(model="demo", input=TEXTS))
    short = vectors(client.embeddings.create(model="demo", input=TEXTS, dimensions=8))
    assert short.shape == (3, 8)
    np.testing.assert_allclose(short, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-3)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="demo", input="a", dimensions=whole.shape[1] + 1)


def test_the_answer_follows_the_published_document(address: str) -> None:
    got = httpx.post(address + "/v1/embeddings", json={"model": "demo", "input": TEXTS})
    validate(got.json(), "openai", "CreateEmbeddingResponse")


@pytest.mark.parametrize(("change", "param"), [
    ({"input": []}, "input"), ({"input": [1, "a"]}, "input"), ({"input": [[]]}, None), ({"input": ""}, None),
    ({"input": "x y " * 20_000}, None), ({"input": [10**9]}, None), ({"input": ["a"] * 2049}, "input"),
    ({"encoding_format": "int8"}, "encoding_format"), ({"dimensions": 0}, "dimensions"),
    ({"pooling": "max"}, "pooling"),
    ({"prompt": "a"}, "prompt"),
])
def test_refusals(address: str, change: dict[str, object], param: str | None) -> None:
    got = httpx.post(address + "/v1/embeddings", json={"model": "demo", "input": "a", **change}, timeout=60)
    assert got.status_code == 400, got.text
    assert got.json()["error"]["message"] and got.json()["error"]["param"] == param


def test_long_lists_leave_room_for_answers(address: str, llm: LLM) -> None:
    """More texts than run or wait at once are no overload."""
    got = httpx.post(address + "/v1/embeddings", json={"input": ["one", "two", "three"] * 40}, timeout=60)
    assert len(got.json()["data"]) == 120
    assert idle(llm, 3)


def test_a_deadline_and_who_goes_away(llm: LLM, address: str) -> None:
    body = {"input": ["many words " * 100] * 200}
    with serving(Host(llm, "demo", ServeConfig(request_timeout=0.05))) as hasty:
        assert httpx.post(hasty + "/v1/embeddings", json=body, timeout=60).status_code == 504
    assert idle(llm, 5)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(address + "/v1/embeddings", json={"input": ["many words " * 30] * 250}, timeout=0.3)
    assert idle(llm, 5)
