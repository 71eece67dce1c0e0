"""Golden launch traces: what whole steps of the small models launch, and that buckets alone decide it.

After a wanted change: python -m pytest tests/dry/test_traces.py --refresh-traces, then read the diff.
"""
from __future__ import annotations

from pathlib import Path

import pytest

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.device.dry import DryQueue
from blackwell_infer.device.trace import Launch, difference, from_lines, same_grids, to_lines
from blackwell_infer.engine.rehearsal import work
from blackwell_infer.engine.runner import ModelRunner
from blackwell_infer.engine.scheduler import Limits
from blackwell_infer.engine.state import Build
from blackwell_infer.engine.weights import DeviceLoading, Meter, hollow, placing
from blackwell_infer.log import silent
from blackwell_infer.models.registry import find_family
from blackwell_infer.ops.cuda import CudaOps

DATA = Path(__file__).resolve().parents[1] / "data"
LIBRARIES = {"sm_90a": frozenset({"cublaslt"}), "sm_120f": frozenset[str]()}
STEPS = {"decode-1": [1], "decode-4": [1] * 4, "mixed": [40, 1, 1], "prefill-100": [100]}


def steps(model: str, arch: str, limits: Limits, counts: dict[str, list[int]]) -> dict[str, list[Launch]]:
    """The launches of each step, by name."""
    checkpoint = open_checkpoint(DATA / model)
    family = find_family(checkpoint.config)
    build = Build(family, family.config(checkpoint.config), "bfloat16")
    queue = DryQueue(arch, libraries=LIBRARIES[arch])
    loading = DeviceLoading(queue, checkpoint.tensors, hollow(checkpoint.tensors), Meter(0, silent),
                            placing("full", CudaOps(queue).arrange))
    runner = ModelRunner(queue, CudaOps(queue), build.model(queue, loading, limits.context, limits.batch, 1))
    traces = {}
    for name, rows in counts.items():
        queue.trace.clear()
        runner.launch(work(rows, limits, scores=False))
        traces[name] = list(queue.trace)
    return traces


LIMITS = Limits(batch=4, step_tokens=128, score_tokens=32, pages=64, context=256)


@pytest.mark.parametrize("arch", LIBRARIES)
@pytest.mark.parametrize("model", ["llama", "mistral", "qwen3", "qwen3_moe", "qwen3_5", "qwen3_5_moe"])
def test_a_model_launches_what_it_did(model: str, arch: str, pytestconfig: pytest.Config) -> None:
    for name, trace in steps(model, arch, LIMITS, STEPS).items():
        path = DATA / "traces" / f"{model}-{arch}-{name}.jsonl"
        if pytestconfig.getoption("refresh_traces"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(to_lines(trace), encoding="utf-8")
        assert path.exists(), f"{path} is missing: run with --refresh-traces"
        found = difference(from_lines(path.read_text(encoding="utf-8")), trace)
        assert not found, f"{path.name}:\n{found}"


@pytest.mark.parametrize("model", ["qwen3", "qwen3_moe", "qwen3_5_moe"])
@pytest.mark.parametrize("arch", LIBRARIES)
def test_steps_of_one_bucket_launch_alike(arch: str, model: str) -> None:
    short = Limits(batch=4, step_tokens=128, score_tokens=32, pages=64, context=250)
    for name, rows in {"decode": [1, 1, 1], "mixed": [33, 1]}.items():
        a, b = (steps(model, arch, limits, {name: rows})[name] for limits in (LIMITS, short))
        assert same_grids(a, b), difference(a, b)


@pytest.mark.parametrize("model", ["qwen3", "qwen3_moe", "qwen3_5_moe"])
def test_every_launch_of_a_decode_step_is_a_dependent_launch(model: str) -> None:
    for launch in steps(model, "sm_120f", LIMITS, {"decode": [1]})["decode"]:
        assert launch.pdl, launch
