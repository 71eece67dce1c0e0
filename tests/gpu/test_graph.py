"""Decode steps as CUDA graphs on the GPU at hand: the bits of steps launched kernel by kernel, alone as in a batch, and
no memory lost."""
from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackwell_infer import LLM, Output, Sampling
from blackwell_infer.config import EngineConfig
from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.device.info import list_devices
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.graphs import GraphRunner
from blackwell_infer.engine.load import load
from blackwell_infer.engine.request import make_request
from blackwell_infer.engine.stream import Stream
from blackwell_infer.errors import OutOfMemoryError
from blackwell_infer.kernels.compile import Builder
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.log import silent

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("llama", "mistral", "qwen3")
SOURCE = """
extern "C" __global__ void turn(const float *x, float *y, int n, float a) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
    if (i < n) y[i] = a * x[n - 1 - i] + 1;
}
"""
TURN = Kernel("turn.cu", "turn", (
    Param("x", "in", "float32"), Param("y", "out", "float32"), Param("n", "i32"), Param("a", "f32"))).variant()


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    found = list_devices()
    if not found.devices:
        pytest.skip(found.reason)


@pytest.fixture
def own(queue: CudaQueue, tmp_path: Path) -> Iterator[CudaQueue]:
    """A queue whose one kernel is that above."""
    (tmp_path / "turn.cu").write_text(SOURCE)
    own = CudaQueue(0, queue.arch, Builder(queue.arch, None, tmp_path))
    yield own
    own.close()


def test_a_chain_of_dependent_launches_is_recorded_in_order(own: CudaQueue) -> None:
    n, x = 1 << 18, own.zeros((1 << 18,), np.float32)
    y = own.zeros((n,), np.float32)

    def work() -> None:
        a = x
        for i in range(31):
            b = y if i == 30 else own.empty((n,), np.float32)
            own.launch(TURN, (n // 256, 1, 1), (256, 1, 1), a, b, n, 0.5, pdl=True)
            a = b

    with own.step():
        work()
    graph = own.capture(work)
    for seed in range(5):
        host = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
        own.upload(x, host)
        graph.run()
        got = own.download(y)
        with own.step():  # an ordinary step uses the same arena in between
            own.launch(TURN, (n // 256, 1, 1), (256, 1, 1), x, own.empty((n,), np.float32), n, 9.0, pdl=True)
        for _ in range(31):
            host = np.float32(0.5) * host[::-1] + np.float32(1)
        assert np.array_equal(got.result(), host)


def requests(vocab: int, count: int) -> tuple[list[list[int]], list[Sampling]]:
    """Prompts of 1 to 180 tokens; greedy, seeded, penalised and biased settings in turn, all with log-probabilities."""
    draw = random.Random(9)
    prompts = [[draw.randrange(vocab) for _ in range(draw.choice((1, 3, 16, 17, 64, 130, 180)))] for _ in range(count)]
    kinds: list[dict[str, Any]] = [
        {"temperature": 0}, {}, {"temperature": 0.7, "top_k": 30}, {"top_p": 0.9},
        {"min_p": 0.02, "repetition_penalty": 1.2}, {"presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"temperature": 0, "repetition_penalty": 1.4}, {"logit_bias": {5: 3.0, 9: -4.0}}]
    return prompts, [Sampling(**kinds[i % 8], seed=100 + i, max_tokens=20 + 2 * i, logprobs=(0, 3, 20)[i % 3],
                              ignore_eos=i % 2 == 0) for i in range(count)]


def tokens(outs: list[Output]) -> list[Any]:
    return [(o.token_ids, o.finish_reason) for o in outs]


def bits(outs: list[Output]) -> list[Any]:
    """Tokens, and log-probabilities exactly (those of alternatives included)."""
    return [(o.token_ids, o.finish_reason, o.logprobs) for o in outs]


def opened(name: str) -> LLM:
    return LLM(str(ROOT / "tests" / "data" / name), device="cuda", max_context=256)


class Desk:
    """A loaded model whose steps the test makes, so that what runs together does not depend on time."""

    def __init__(self, name: str, dtype: str, graphs: bool) -> None:
        config = EngineConfig(device="cuda", dtype=dtype, max_context=256, graphs=graphs)
        self.found = load(str(ROOT / "tests" / "data" / name), config, silent)
        assert isinstance(self.found.runner, GraphRunner)
        self.runner = self.found.runner
        self.vocab = self.found.info.vocab

    def answer(self, prompts: list[list[int]], samplings: list[Sampling]) -> list[Output]:
        engine = Engine(self.runner, self.found.limits, self.found.text.tokenizer, self.vocab)
        streams = [Stream(engine, make_request(self.found.text, self.vocab, p, s, {}))
                   for p, s in zip(prompts, samplings, strict=True)]
        while engine.step():
            pass
        return [stream.gather() for stream in streams]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_graphs_give_the_bits_of_single_launches(name: str, dtype: str) -> None:
    found = {}
    for graphs in (True, False):
        desk = Desk(name, dtype, graphs)
        prompts, samplings = requests(desk.vocab, 32)
        found[graphs] = bits(desk.answer(prompts, samplings))
        assert bool(desk.runner.captured) == graphs
        if graphs:
            assert max(b.rows for b in desk.runner.captured) == 32 and len(desk.runner.captured) > 3
            assert bits(desk.answer(prompts, samplings)) == found[True], "again, now that every bucket is recorded"
        desk.runner.close()
    assert found[True] == found[False]


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_answers_as_each_alone(name: str) -> None:
    # Prompts that share a step go through another matmul than each alone, whose last bits differ: in bfloat16 that is
    # enough to turn a draw from random weights, in float32 it is not.
    desk = Desk(name, "float32", True)
    prompts, samplings = requests(desk.vocab, 32)
    alone = [desk.answer([p], [s])[0] for p, s in zip(prompts, samplings, strict=True)]
    assert tokens(desk.answer(prompts, samplings)) == tokens(alone)
    assert {b.rows for b in desk.runner.captured} >= {1, 16, 32}
    desk.runner.close()
    desk = Desk(name, "bfloat16", True)
    # Up to 16 rows in every step, the prompts' too, nothing may depend on the neighbours, to the last bit.
    prompts, samplings = [[5 + i] for i in range(16)], samplings[:16]
    alone = [desk.answer([p], [s])[0] for p, s in zip(prompts, samplings, strict=True)]
    assert bits(desk.answer(prompts, samplings)) == bits(alone)
    assert {b.rows for b in desk.runner.captured} >= {1, 16}
    desk.runner.close()


def test_scores_and_prefills_between_decode_steps() -> None:
    with opened("qwen3") as llm:
        prompts, samplings = requests(llm.info().vocab, 12)
        expected = tokens([llm.generate(p, s) for p, s in zip(prompts, samplings, strict=True)])
        text = list(range(1, 200))
        score = llm.score(text).logprobs
        streams = [llm.stream(p, s) for p, s in zip(prompts, samplings, strict=True)]
        again = [llm.score(text).logprobs for _ in range(3)]
        assert tokens([s.gather() for s in streams]) == expected
        assert all(np.allclose(score, a, atol=0.1) for a in again)


def test_a_cancelled_neighbour_changes_nothing() -> None:
    with opened("llama") as llm:
        prompts, samplings = requests(llm.info().vocab, 8)
        expected = tokens(llm.generate(prompts, samplings))
        streams = [llm.stream(p, s) for p, s in zip(prompts, samplings, strict=True)]
        doomed = llm.stream(prompts[1], Sampling(max_tokens=200, ignore_eos=True))
        for _ in range(5):
            next(doomed)
        doomed.close()
        assert tokens([s.gather() for s in streams]) == expected
        assert llm.stats().running == 0


def test_memory_returns(queue: CudaQueue) -> None:
    prompts, samplings = requests(300, 16)
    for turn in range(3):
        with opened("qwen3") as llm:
            llm.generate(prompts, samplings)
            runner = llm._found.runner
            assert isinstance(runner, GraphRunner) and runner.captured
            del runner
        del llm
        gc.collect()
        if turn == 0:
            free = queue.memory()[0]
    assert queue.memory()[0] >= free - (8 << 20), "graphs, inputs and weights of closed models are freed"


def test_no_memory_for_graphs_is_no_failure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(self: CudaQueue, fn: object) -> object:
        raise OutOfMemoryError("out of memory: a CUDA graph does not fit")

    with opened("llama") as llm:
        prompts, samplings = requests(llm.info().vocab, 8)
        expected = tokens(llm.generate(prompts, samplings))
    monkeypatch.setattr(CudaQueue, "capture", full)
    with opened("llama") as llm:
        assert tokens(llm.generate(prompts, samplings)) == expected
    assert caplog.text.count("no memory for a graph") == 1
