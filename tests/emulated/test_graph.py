"""Decode steps of a small model in the interpreter: recorded in buckets, and op by op as they come."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.graphs import GraphRunner
from blackwell_infer.engine.request import make_request
from blackwell_infer.engine.runner import ModelRunner, Runner
from blackwell_infer.engine.scheduler import Limits
from blackwell_infer.engine.state import Build
from blackwell_infer.engine.stream import Stream
from blackwell_infer.engine.weights import DeviceLoading, Meter, placing
from blackwell_infer.log import silent
from blackwell_infer.models.registry import find_family
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.text.load import open_text
from blackwell_infer.types import Output, Sampling

DATA = Path(__file__).resolve().parents[1] / "data"
LIMITS = Limits(batch=3, step_tokens=16, score_tokens=8, pages=6, context=64)
ASKED = [([5, 9, 2, 77], Sampling(temperature=0, max_tokens=4, logprobs=2, ignore_eos=True)),
         ([300], Sampling(seed=3, max_tokens=6, logprobs=0, repetition_penalty=1.3, ignore_eos=True)),
         ([7, 7, 1], Sampling(seed=4, max_tokens=4, top_p=0.8, logit_bias={9: 3.0}))]


def answers(queue: EmulatedQueue, name: str, graphs: bool) -> tuple[list[Output], Runner]:
    """What three requests get with or without recorded steps, with the log-probabilities' bits."""
    checkpoint = open_checkpoint(DATA / name)
    family = find_family(checkpoint.config)
    build = Build(family, family.config(checkpoint.config), "bfloat16")
    loading = DeviceLoading(queue, checkpoint.tensors, checkpoint.weight, Meter(0, silent),
                            placing("full", CudaOps(queue).arrange))
    model, ops = build.model(queue, loading, LIMITS.context, LIMITS.batch, LIMITS.pages), CudaOps(queue)
    runner = GraphRunner(queue, ops, model, LIMITS.context) if graphs else ModelRunner(queue, ops, model)
    text, vocab = open_text(checkpoint), build.geometry.vocab
    engine = Engine(runner, LIMITS, text.tokenizer, vocab)
    streams = [Stream(engine, make_request(text, vocab, p, s, {})) for p, s in ASKED]
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
