"""The prefix cache on real models: what it saves, and that nothing else changes. On NumPy, and with -m gpu on a GPU."""
from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blackwell_infer import LLM, Output, Sampling, Stats
from blackwell_infer.device.info import list_devices
from blackwell_infer.kv.spec import PAGE

DATA = Path(__file__).resolve().parents[1] / "data"
HYBRIDS = ("qwen3_5", "qwen3_5_moe")
EXACT = 16
"""Tokens of a step up to which a row's bits do not depend on what comes with it"""

Open = Callable[..., LLM]


@pytest.fixture(params=["numpy", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not list_devices().devices:
        pytest.skip(list_devices().reason)
    return str(request.param)


@pytest.fixture(params=("llama", *HYBRIDS))
def opened(request: pytest.FixtureRequest, device: str) -> Open:
    def make(**settings: Any) -> LLM:
        return LLM(str(DATA / request.param),
                   **{"device": device, "dtype": "float32", "max_context": 256, **settings})
    make.hybrid = request.param in HYBRIDS  # type: ignore[attr-defined]
    return make


def text(seed: int, count: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, 250) for _ in range(count)]


def said(out: Output) -> Any:
    """Tokens and the log-probabilities of twenty candidates each, to the bit."""
    assert out.logprobs is not None
    return [(p.token_id, p.logprob, p.top) for p in out.logprobs], out.finish_reason


def at_rest(llm: LLM) -> Stats:
    """The counters once the engine has nothing to do: the last event of a request comes before its step is counted."""
    for _ in range(500):
        stats = llm.stats()
        if not stats.running and not stats.waiting and not stats.pages_used:
            return stats
        time.sleep(0.01)
    raise AssertionError(f"pages are still in use: {stats}")


def asking(count: int = 12, **settings: Any) -> Sampling:
    return Sampling(**{"temperature": 0, "max_tokens": count, "logprobs": 20, "ignore_eos": True, **settings})


def turns(llm: LLM, count: int) -> list[tuple[int, Any]]:
    """A conversation: what each prompt found in the cache, and each answer."""
    found, tokens = [], text(1, 70)
    for turn in range(count):
        out = llm.generate(tokens, asking(33))
        found.append((out.usage.cached_tokens, said(out)))
        tokens = [*tokens, *out.token_ids, *text(turn + 9, 7)]
    return found


def test_a_conversation_reads_only_what_is_new_and_says_the_same_to_the_bit(opened: Open) -> None:
    with opened(max_step_tokens=EXACT) as llm, opened(max_step_tokens=EXACT, prefix_cache=False) as without:
        got, expected = turns(llm, 4), turns(without, 4)
        assert [answer for _, answer in got] == [answer for _, answer in expected]
        lengths = [70 + 40 * turn for turn in range(4)]
        places = [0, *(length - 8 for length in lengths[1:])]  # the last token of an answer has no keys yet
        step = 2 * PAGE if opened.hybrid else PAGE  # type: ignore[attr-defined]
        assert [cached for cached, _ in got] == [place // step * step for place in places]
        assert not any(cached for cached, _ in expected)
        stats = at_rest(llm)
        assert stats.prompt_tokens + stats.cached_tokens == sum(lengths) == at_rest(without).prompt_tokens
        assert stats.pages_used == 0 < stats.pages_cached and without.stats().pages_cached == 0
        assert bool(stats.states_cached) == opened.hybrid  # type: ignore[attr-defined]


def test_long_steps_agree_to_rounding(opened: Open) -> None:
    with opened() as llm, opened(prefix_cache=False) as without:
        pairs = list(zip(turns(llm, 4), turns(without, 4), strict=True))
        for (_, got), (_, expected) in pairs:
            assert [token for token, _, _ in got[0]] == [token for token, _, _ in expected[0]]
            assert max(abs(a - b) for (_, a, _), (_, b, _) in zip(got[0], expected[0], strict=True)) < 2e-5
        assert pairs[-1][0][0] >= 128


def requests(count: int) -> tuple[list[list[int]], list[Sampling]]:
    """Prompts that begin alike in groups and part at many lengths."""
    draw = random.Random(3)
    prompts = [[*text(draw.randrange(3), 150)[: draw.choice((1, 31, 32, 33, 63, 64, 65, 96, 120, 128, 150))],
                *text(draw.randrange(99), draw.randrange(3))] for _ in range(count)]
    return prompts, [asking(draw.randrange(1, 90), seed=i, temperature=draw.choice((0.0, 0.8))) for i in range(count)]


@pytest.mark.parametrize("pages", [9, 14, 40])
def test_any_schedule_says_the_same_to_the_bit(opened: Open, pages: int) -> None:
    prompts, samplings = requests(24)
    with opened(max_step_tokens=EXACT, prefix_cache=False) as without:
        expected = [said(out) for out in without.generate(prompts, samplings)]
    with opened(max_step_tokens=EXACT, kv_pages=pages, max_batch=5) as llm:
        assert [said(out) for out in llm.generate(prompts, samplings)] == expected
        assert [said(llm.generate(p, s)) for p, s in zip(prompts, samplings, strict=True)] == expected
        stats = at_rest(llm)
        assert stats.cached_tokens > 0 and stats.pages_used == 0
        assert stats.preemptions > 0 or pages > 9


def test_choices_of_one_prompt_and_a_request_beside_them(opened: Open) -> None:
    sampling = asking(8, n=4, temperature=1.0, seed=5)
    with opened(max_step_tokens=EXACT, prefix_cache=False) as without:
        expected = without.generate(text(1, 100), sampling)
    with opened(max_step_tokens=EXACT) as llm:
        stream = llm.stream(text(1, 100), asking(100))
        next(stream)
        out = llm.generate(text(1, 100), sampling)
        stream.close()
    assert [c.logprobs for c in out.choices] == [c.logprobs for c in expected.choices]
    assert out.usage.cached_tokens == (64 if opened.hybrid else 96)  # type: ignore[attr-defined]


def test_scores_want_every_token_and_leave_nothing(opened: Open) -> None:
    with opened(max_step_tokens=EXACT) as llm:
        ids = text(1, 100)
        first = llm.score(ids).logprobs
        assert at_rest(llm).pages_cached == 0
        llm.generate(ids, asking(3))
        assert (llm.score(ids).logprobs == first).all() and llm.stats().cached_tokens == 0
