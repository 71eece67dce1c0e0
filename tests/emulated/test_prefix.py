"""The prefix cache with `reproducible`: a hit gives the bits of a fresh prefill, whatever the sizes of steps."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blackwell_infer import LLM, Sampling

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("name", ["llama", pytest.param("qwen3_5", marks=pytest.mark.slow)])
def test_a_hit_has_the_bits_of_a_fresh_prefill(name: str, monkeypatch: pytest.MonkeyPatch,
                                               pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    sampling = Sampling(temperature=0, max_tokens=3, logprobs=20, ignore_eos=True)
    first = [(7 * i * i + 3) % 251 for i in range(75)]

    def conversation(prefix_cache: bool) -> tuple[list[Any], list[int]]:
        found, cached, tokens = [], [], first
        with LLM(str(DATA / name), device="emulated", dtype="bfloat16", max_context=256, max_batch=1,
                 max_step_tokens=128, reproducible=True, prefix_cache=prefix_cache) as llm:
            for turn in range(3):
                out = llm.generate(tokens, sampling)
                found.append((out.token_ids, out.logprobs))
                cached.append(out.usage.cached_tokens)
                tokens = [*tokens, *out.token_ids, *(turn + i for i in range(18))]
        return found, cached

    fresh, nothing = conversation(False)
    hits, cached = conversation(True)
    assert hits == fresh and not any(nothing)
    assert cached == [0, 64, 64] if name == "qwen3_5" else cached == [0, 64, 96]


def test_a_restart_finds_pages_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    outs = []
    for _ in range(2):
        with LLM(str(DATA / "llama"), device="emulated", dtype="bfloat16", max_context=256, max_batch=1,
                 max_step_tokens=128, reproducible=True, prefix_disk=str(tmp_path)) as llm:
            outs.append(llm.generate([(7 * i * i + 3) % 251 for i in range(75)],
                                     Sampling(temperature=0, max_tokens=2, logprobs=20, ignore_eos=True)))
    assert [out.usage.cached_tokens for out in outs] == [0, 64] and len([*tmp_path.glob("*.page")]) == 2
    assert outs[0].choices == outs[1].choices
