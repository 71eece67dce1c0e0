"""A decode step taken apart on a queue whose clock is made up: what is launched, in which order, and how it adds up."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.config import EngineConfig
from blackwell_infer.device.check import describe
from blackwell_infer.device.dry import DryQueue
from blackwell_infer.device.queue import Dim, Scalar
from blackwell_infer.device.record import Recorder
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.device.trace import Launch, same_grids
from blackwell_infer.engine.load import survey
from blackwell_infer.engine.profile import DryModel, Recording, grouped, measure_bandwidth, record, timed, untimed
from blackwell_infer.kernels.kernel import Variant
from blackwell_infer.ops.cuda.stream import READ
from blackwell_infer.types import Array

DATA = Path(__file__).resolve().parents[1] / "data"
LAUNCH_MS = 0.002


class ClockedQueue(DryQueue):
    """Every launch takes 2 us, and a graph of all of them 10 us more. Recorded arguments keep no memory, so launches
    are listed and not checked."""

    def launch(self, v: Variant, grid: Dim, block: Dim, *args: Array | Scalar | None, smem: int = 0,
               pdl: bool = False) -> None:
        self.variants[v.key] = v
        self.trace.append(Launch(v.kernel.entry, v.defines, grid, block, smem, pdl, tuple(map(describe, args))))

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        before = len(self.trace)
        work()
        kinds = {launch.entry for launch in self.trace[before:]}
        return LAUNCH_MS * (len(self.trace) - before) + (0.01 if len(kinds) > 1 else 0)


def recorded(queue: DryQueue, lengths: list[int]) -> Recording:
    """A step of the small Qwen3."""
    checkpoint = open_checkpoint(DATA / "qwen3")
    dry = DryModel(survey(checkpoint, EngineConfig(max_batch=4), on_host=False), checkpoint, 256, 4, queue)
    queue.trace.clear()
    return record(queue, dry.model, dry.tokens, 256, lengths, False)


def test_a_recording_is_the_step_itself() -> None:
    queue = DryQueue()
    recording = recorded(queue, [9, 20])
    assert len(recording.launches) == len(queue.trace) and recording.lengths == (9, 20)
    again = DryQueue()
    plain = recorded(again, [9, 20])
    assert same_grids(queue.trace, again.trace) and len(plain.launches) == len(queue.trace)
    assert sum(len(group) for group in grouped(recording.launches)) == len(queue.trace)


def test_launches_that_run_again_find_their_inputs_because_nothing_was_written_over_them() -> None:
    queue = DryQueue()
    recorder = Recorder(queue)
    with queue.step():
        a = recorder.empty((64, 8192), np.uint32).reshape(-1)
        recorder.launch(READ.variant(), (64, 1, 1), (256, 1, 1), a, recorder.empty((64,), np.uint32))
        first = a.ptr
        del a
        assert recorder.empty((64, 8192), np.uint32).ptr != first, "the range is not handed out again"
    kept = recorder.launches[0].args[0]  # type: ignore[union-attr]
    assert isinstance(kept, Tensor) and (kept.ptr, kept.base) == (first, None)


def test_phases_are_timed_by_themselves_and_the_gap_is_what_is_left() -> None:
    queue = ClockedQueue()
    recording = recorded(queue, [9])
    got = timed(queue, recording, 3)
    bare = untimed(recording)
    assert [(p.kernel, p.launches, p.cost) for p in got.phases] == [(p.kernel, p.launches, p.cost) for p in bare.phases]
    for phase in got.phases:
        assert phase.us == pytest.approx(1e3 * LAUNCH_MS * phase.launches)
    assert got.step_us == pytest.approx(1e3 * LAUNCH_MS * len(recording.launches) + 10)
    assert got.gap_us == pytest.approx(10)
    assert (bare.step_us, bare.kernels_us, bare.gap_us) == (None, None, None)


def test_the_whole_step_runs_before_each_timing() -> None:
    """So that the device is busy, and its caches hold what a step leaves there."""
    queue = ClockedQueue()
    recording = recorded(queue, [9])
    queue.trace.clear()
    timed(queue, recording, 1)
    lead = round(1 / (LAUNCH_MS * len(recording.launches) + 0.01))
    whole, phases = len(recording.launches), len(grouped(recording.launches))
    steps = 1 + 1 + (phases + 1) * lead + 1  # a first one, its timing, the leads, and the step's own timing
    assert len(queue.trace) == steps * whole + 2 * whole, "every phase runs once before and once in its timing"


@pytest.mark.parametrize(("total", "read"), [(1 << 40, 8 << 30), (1 << 30, int(0.8 * (1 << 30)))])
def test_bandwidth_is_read_over_what_fits(total: int, read: int) -> None:
    queue = ClockedQueue(total=total)
    got = measure_bandwidth(queue)
    assert got.nbytes == pytest.approx(read, rel=1e-3)
    assert got.rate == pytest.approx(got.nbytes / (1e-3 * LAUNCH_MS))
    assert queue.variants.keys() == {"read_words()"}
