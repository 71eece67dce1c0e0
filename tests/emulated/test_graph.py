"""Decode steps of a small model in the interpreter: recorded in buckets, and op by op as they come."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from builds import BUILDS
from grammars import Drawn, with_grammar

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.graphs import GraphRunner
from blackwell_infer.engine.request import make_request
from blackwell_infer.engine.runner import ModelRunner, Runner
from blackwell_infer.engine.scheduler import Limits
from blackwell_infer.engine.speculate import Speculation, Speculator
from blackwell_infer.engine.state import Build
from blackwell_infer.engine.stream import Stream
from blackwell_infer.engine.weights import DeviceLoading, Meter, placing
from blackwell_infer.log import silent
from blackwell_infer.models.registry import find_family
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.text.budget import Budget
from blackwell_infer.text.load import open_text
from blackwell_infer.types import Output, Sampling

DATA = Path(__file__).resolve().parents[1] / "data"
MARKS = ("<", "ok")
"""of reasoning"""
LIMITS = Limits(batch=3, step_tokens=16, score_tokens=8, pages=6, context=64)
ASKED = [([5, 9, 2, 77], Sampling(temperature=0, max_tokens=4, logprobs=2, ignore_eos=True)),
         ([300], Sampling(seed=3, max_tokens=6, logprobs=0, repetition_penalty=1.3, ignore_eos=True)),
         ([7, 7, 1], Sampling(seed=4, max_tokens=4, top_p=0.8, logit_bias={9: 3.0}))]


def answers(queue: EmulatedQueue, name: str, graphs: bool, grammars: bool = False,
            depth: int = 0, budgets: bool = False) -> tuple[list[Output], Runner]:
    """What three requests get with or without recorded steps, with the log-probabilities' bits. `grammars`: all but the
    second follow one; `budgets`: all reason, the first two within a budget; `depth`: rows bring so many guesses."""
    checkpoint = open_checkpoint(DATA / name)
    family = find_family(checkpoint.config)
    build = Build(family, family.config(checkpoint.config), "bfloat16")
    loading = DeviceLoading(queue, checkpoint.tensors, checkpoint.weight, Meter(0, silent),
                            placing("full", CudaOps(queue).arrange))
    model, ops = build.model(queue, loading, LIMITS.context, LIMITS.batch, LIMITS.pages), CudaOps(queue)
    runner = GraphRunner(queue, ops, model, LIMITS.context) if graphs else ModelRunner(queue, ops, model)
    text, vocab = open_text(checkpoint), build.geometry.vocab
    limits = msgspec.structs.replace(LIMITS, checked=16, reach=depth) if depth else LIMITS
    speculator = Speculator(Speculation(True, False, depth, depth), None) if depth else None
    engine = Engine(runner, limits, text.tokenizer, vocab, speculator)
    requests = [make_request(text, vocab, p, s, {}) for p, s in ASKED]
    if grammars:
        requests = [request if i == 1 else with_grammar(request, [Drawn(i, vocab, 3)], text.tokenizer.stop_ids)
                    for i, request in enumerate(requests)]
    if budgets:
        held = [Budget(text.tokenizer, MARKS, MARKS[1], 1 + i, True) for i in range(2)]
        requests[:2] = [msgspec.structs.replace(r, matchers=(h,)) for r, h in zip(requests[:2], held, strict=True)]
    streams = [Stream(engine, request) for request in requests]
    while engine.step():
        pass
    outputs = [stream.gather() for stream in streams]
    for stream in streams:
        if stream.failure is not None:
            raise stream.failure
    return outputs, runner


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe_pruned"])
def test_recorded_steps_give_the_bits_of_others(emulated: Callable[..., EmulatedQueue], name: str) -> None:
    plain, _ = answers(emulated("sm_90a"), name, graphs=False)
    recorded, runner = answers(emulated("sm_90a"), name, graphs=True)
    assert isinstance(runner, GraphRunner) and runner.captured
    for a, b in zip(plain, recorded, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == b.logprobs, "log-probabilities are compared bit for bit"
    assert [len(a.token_ids) for a in plain[:2]] == [4, 6]


@pytest.mark.parametrize("arch", BUILDS)
def test_answers_follow_their_grammars_recorded_or_not_and_with_guesses(emulated: Callable[..., EmulatedQueue],
                                                                        arch: str) -> None:
    plain, _ = answers(emulated(arch), "qwen3", graphs=False, grammars=True)
    recorded, runner = answers(emulated(arch), "qwen3", graphs=True, grammars=True)
    guessed, _ = answers(emulated(arch), "qwen3", graphs=True, grammars=True, depth=2)
    assert isinstance(runner, GraphRunner) and any(bucket.masked for bucket in runner.captured)
    for i, (a, b, c) in enumerate(zip(plain, recorded, guessed, strict=True)):
        assert a.token_ids == b.token_ids == c.token_ids
        assert a.logprobs == b.logprobs == c.logprobs, "log-probabilities are compared bit for bit"
        if i != 1:
            matcher = Drawn(i, 320, 3)
            assert matcher.accept(a.token_ids) == 3 == len(a.token_ids) - 1 and a.finish_reason == "stop"


def test_budgets_of_reasoning_recorded_or_not_and_with_guesses(emulated: Callable[..., EmulatedQueue]) -> None:
    free, _ = answers(emulated("sm_90a"), "qwen3", graphs=False)
    plain, _ = answers(emulated("sm_90a"), "qwen3", graphs=False, budgets=True)
    recorded, runner = answers(emulated("sm_90a"), "qwen3", graphs=True, budgets=True)
    guessed, _ = answers(emulated("sm_90a"), "qwen3", graphs=True, budgets=True, depth=2)
    assert isinstance(runner, GraphRunner) and any(bucket.masked for bucket in runner.captured)
    close = open_text(open_checkpoint(DATA / "qwen3")).tokenizer.spell(MARKS[1].encode())
    assert close is not None
    for i, (a, b, c) in enumerate(zip(plain, recorded, guessed, strict=True)):
        assert a.token_ids == b.token_ids == c.token_ids and a.logprobs == b.logprobs == c.logprobs
        before = free[i].token_ids
        at = next((k for k in range(len(before)) if list(a.token_ids[k : k + len(close)]) == close), len(before))
        assert a.token_ids[:at] == before[:at] and (i == 2 or 1 + i <= at < 4 + i), (a.token_ids, before, close)
