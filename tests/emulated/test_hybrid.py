"""Hybrids of recurrent and attention layers on the emulated device: tokens of whole models as the NumPy backend's."""
from __future__ import annotations

from pathlib import Path

import pytest
from tooling import load_tool

from blackwell_infer import LLM, Sampling

DATA = Path(__file__).parents[1] / "data"


def answers(model: Path, device: str, dtype: str = "float32") -> list[tuple[int, ...]]:
    """Of a prompt that comes in two chunks and of a short one beside it; from the third step on, recorded."""
    with LLM(model, device=device, dtype=dtype, max_context=128, max_batch=2, max_step_tokens=32) as llm:
        out = llm.generate([list(range(3, 43)), [5, 6, 7]], Sampling(temperature=0, max_tokens=5, ignore_eos=True))
        return [o.token_ids for o in out]


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120f"])
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_greedy_tokens_equal_the_reference(name: str, arch: str, monkeypatch: pytest.MonkeyPatch,
                                           pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    assert answers(DATA / name, f"emulated:{arch}") == answers(DATA / name, "numpy")


def test_a_quantised_gguf_file_gives_the_tokens_of_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    load_tool("hf_to_gguf").convert(DATA / "qwen3_5_moe", tmp_path / "m.gguf", kind="q8_0")
    assert answers(tmp_path / "m.gguf", "emulated") == answers(tmp_path / "m.gguf", "numpy")
