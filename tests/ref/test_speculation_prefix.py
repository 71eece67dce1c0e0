"""Speculation and the prefix cache together: conversations, side by side and with few pages, say what they say with
both off, to the bit. Steps have up to 16 tokens, as in `test_speculation`."""
from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from test_speculation import PATHS, Knows, answers, opened, plain, speculating

from blackwell_infer import LLM, Sampling, Stats
from blackwell_infer.engine import scheduler
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.load import Loaded
from blackwell_infer.kv.spec import PAGE

__all__ = ["opened"]
SIDE, TURNS, LENGTH, ADDED = 3, 3, 34, 5
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "logprobs": 2}, {"temperature": 0.8}, {"temperature": 0.5, "presence_penalty": 0.5})


def talks(engine: Engine, found: Loaded) -> tuple[list[Any], list[tuple[int, ...]], list[int]]:
    """Conversations side by side: all events, the answers in order of arrival, tokens that the cache held."""
    draw = random.Random(7)
    texts = [[draw.randrange(found.info.vocab) for _ in range(9 + 15 * i)] for i in range(SIDE)]
    said, tokens, cached = list[Any](), list[tuple[int, ...]](), list[int]()
    for turn in range(TURNS):
        events = answers(engine, found, [
            (text, Sampling(seed=10 * turn + i, max_tokens=LENGTH, ignore_eos=True, **KINDS[i]))
            for i, text in enumerate(texts)], turn)
        said += plain(events)
        for i, one in enumerate(events):
            tokens.append(tuple(t for e in one for t in e.token_ids))
            texts[i] += [*tokens[-1], *(draw.randrange(found.info.vocab) for _ in range(ADDED))]
            cached += [e.usage.cached_tokens for e in one if e.usage is not None]
    return said, tokens, cached


def at_most(engine: Engine, **limits: Any) -> Engine:
    """A new engine with other limits."""
    engine.limits = msgspec.structs.replace(engine.limits, **limits)
    engine._state = scheduler.start(engine.limits)
    return engine


@pytest.mark.parametrize("name", ["llama", "qwen3_5"])
def test_conversations_are_those_with_both_off(opened: Callable[..., Loaded], name: str) -> None:
    found = opened(name)
    bare = at_most(Engine(found.runner, found.limits, found.text.tokenizer, found.info.vocab), checked=0, reuse=False)
    expected, tokens, none = talks(bare, found)
    assert not any(none)
    stride = found.limits.stride if found.limits.stride > 1 else PAGE
    for depth, pages in ((1, 40), (4, 40), (8, 40), (4, 6), (3, 5)):
        engine = speculating(found, depth, depth, head=Knows(dict(enumerate(tokens)), depth))
        at_most(engine, pages=pages)
        said, _, cached = talks(engine, found)
        assert said == expected, (depth, pages)
        stats = engine.stats()
        assert stats.accepted_tokens > 30 and stats.drafted_tokens > stats.accepted_tokens and stats.pages_used == 0
        if pages == 40:
            before = [9 + 15 * (i % SIDE) + (i // SIDE) * (LENGTH + ADDED) - ADDED - 1 for i in range(SIDE * TURNS)]
            assert cached == [max(n, 0) // stride * stride if i >= SIDE else 0 for i, n in enumerate(before)]
            assert stats.preemptions == 0
        else:
            assert stats.preemptions > 0


@pytest.mark.parametrize("pages", [6, 40])
@pytest.mark.parametrize(("name", "source"), [("llama", "ngram"), ("qwen3_5", "ngram"), ("qwen3_5", "mtp")])
def test_requests_through_a_model_are_those_with_both_off(name: str, source: str, pages: int) -> None:
    def run(**settings: Any) -> tuple[list[Any], Stats]:
        with LLM(str(PATHS[name]), device="numpy", dtype="float32", max_context=160, max_step_tokens=16, max_batch=4,
                 **settings) as llm:
            draw, outs = random.Random(2), list[Any]()
            texts = [[draw.randrange(3, 99) for _ in range(40)] for _ in range(2)]
            for turn in range(3):
                sampling = Sampling(temperature=0.7, seed=turn, max_tokens=30, logprobs=2, ignore_eos=True,
                                    logit_bias=dict.fromkeys((3, 4, 5), 40.0))
                for text, out in zip(texts, llm.generate([list(t) for t in texts], sampling), strict=True):
                    outs.append((out.token_ids, out.logprobs, out.finish_reason))
                    text += [*out.token_ids, *(draw.randrange(3, 99) for _ in range(4))]
            return outs, llm.stats()

    expected, plainly = run(speculate="off", prefix_cache=False)
    got, stats = run(speculate=source, draft_min=3, draft_max=3, kv_pages=pages)
    assert got == expected and plainly.cached_tokens == plainly.drafted_tokens == 0
    assert stats.cached_tokens > 0 and stats.drafted_tokens > 20
    assert source == "mtp" or stats.accepted_tokens > 20
