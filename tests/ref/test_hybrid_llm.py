"""`LLM` on hybrids: states of sequences stay apart and follow them. On NumPy, and with -m gpu on a GPU."""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackwell_infer import LLM, Output, Sampling
from blackwell_infer.device.info import list_devices

DATA = Path(__file__).resolve().parents[1] / "data"
Open = Callable[..., LLM]
Alone = tuple[list[list[int]], list[Sampling], list[Output]]


@pytest.fixture(params=["numpy", pytest.param("cuda", marks=pytest.mark.gpu)], scope="module")
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not list_devices().devices:
        pytest.skip(list_devices().reason)
    return str(request.param)


@pytest.fixture(params=["qwen3_5", "qwen3_5_moe"], scope="module")
def opened(request: pytest.FixtureRequest, device: str) -> Open:
    def make(**settings: Any) -> LLM:
        return LLM(DATA / request.param, **{"device": device, "dtype": "float32", "max_context": 256, **settings})
    return make


@pytest.fixture(scope="module")
def llm(opened: Open) -> Iterator[LLM]:
    with opened() as llm:
        yield llm


@pytest.fixture(scope="module")
def alone(llm: LLM) -> Alone:
    """Requests of 1 to 150 tokens, each answered with nothing beside it."""
    draw = random.Random(3)
    prompts = [[draw.randrange(256) for _ in range(draw.choice((1, 2, 16, 17, 33, 64, 65, 150)))] for _ in range(12)]
    samplings = [Sampling(temperature=(0.0, 0.9)[i % 2], seed=i, max_tokens=draw.randrange(4, 30), ignore_eos=True)
                 for i in range(12)]
    return prompts, samplings, [llm.generate(p, s) for p, s in zip(prompts, samplings, strict=True)]


def equal(got: list[Output], expected: list[Output]) -> bool:
    return [o.token_ids for o in got] == [o.token_ids for o in expected]


def test_requests_in_one_batch_answer_as_each_alone(llm: LLM, alone: Alone) -> None:
    prompts, samplings, expected = alone
    assert equal(llm.generate(prompts, samplings), expected)


def test_a_preempted_sequence_starts_from_the_empty_state(opened: Open, alone: Alone) -> None:
    prompts, samplings, expected = alone
    with opened(kv_pages=8, max_batch=4) as llm:
        assert equal(llm.generate(prompts, samplings), expected)
        assert llm.stats().preemptions > 0


def test_prompts_in_chunks_continue_their_states(opened: Open, alone: Alone) -> None:
    prompts, samplings, expected = alone
    with opened(max_step_tokens=20, max_batch=3) as llm:
        assert equal(llm.generate(prompts, samplings), expected)


def test_a_slot_that_was_used_is_empty_to_the_next(opened: Open, alone: Alone) -> None:
    prompts, samplings, expected = alone
    with opened(max_batch=1) as llm:
        assert equal(llm.generate(prompts, samplings), expected)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_states_of_16_bits_are_half_as_large_and_nearly_the_same(llm: LLM, opened: Open, kind: str) -> None:
    text = list(range(3, 60))
    with opened(state_dtype=kind, max_step_tokens=16) as small:
        ours, theirs = small.score(text, logits=True).logits, llm.score(text, logits=True).logits
        assert ours is not None and theirs is not None
        distance = np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std()
        assert 0 < distance < {"float16": 0.01, "bfloat16": 0.08}[kind]
        assert small.info().state_bytes < 0.7 * llm.info().state_bytes


def test_states_count_in_bytes(llm: LLM) -> None:
    """Recurrent layers times four value heads of 32 by 32 float32, and three inputs of 256 channels."""
    info = llm.info()
    layers = 3 if info.family == "qwen3_5" else 2
    assert info.state_bytes == layers * (4 * 32 * 32 * 4 + 3 * 256 * 4)
