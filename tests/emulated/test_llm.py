"""A whole model on the emulated device: the same CUDA launches as on a GPU, greedy tokens as the NumPy backend's."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackwell_infer import LLM, Sampling
from blackwell_infer.errors import DeviceError

MODEL = Path(__file__).parents[1] / "data" / "llama"


def answer(device: str) -> list[int]:
    with LLM(str(MODEL), device=device, dtype="float32", max_context=128, max_batch=2, max_step_tokens=64) as llm:
        (result,) = llm.generate(["Once upon a time"], Sampling(temperature=0.0, max_tokens=8))
        return list(result.token_ids)


def test_greedy_tokens_equal_the_reference(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    expected = answer("numpy")
    assert len(expected) == 8
    assert answer("emulated") == expected


def vectors(device: str) -> np.ndarray[Any, Any]:
    with LLM(str(MODEL), device=device, dtype="float32", max_context=128, max_batch=2, max_step_tokens=16) as llm:
        return np.stack([llm.embed("Once upon a time, there was a dog", pooling) for pooling in ("last", "mean")])


def test_embeddings_equal_the_reference(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    np.testing.assert_allclose(vectors("emulated"), vectors("numpy"), atol=1e-5)


def test_an_unknown_arch_is_named() -> None:
    with pytest.raises(DeviceError, match="emulated:sm_80: kernels exist for sm_90a"):
        answer("emulated:sm_80")
