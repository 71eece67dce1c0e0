"""One decode step taken apart: which launches it makes, what each kind must move, and how long it takes.

A step is recorded launch by launch. Launches of one variant, grid, block and shape are a phase. On a GPU a phase is
timed as a graph of its own launches alone, every layer's in order, so that weights come from memory as they do in the
step; a whole step runs before it, which keeps the device busy and leaves the caches as a step leaves them.
"""
from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import numpy as np

from blackwell_infer.checkpoint import Checkpoint
from blackwell_infer.device.dry import DryQueue
from blackwell_infer.device.queue import Captured, Dim, Queue
from blackwell_infer.device.record import Launched, Recorded, Recorder
from blackwell_infer.engine import step
from blackwell_infer.engine.batch import Settings, Tables, Work, make_batch, make_params
from blackwell_infer.engine.graphs import Inputs, Space
from blackwell_infer.engine.load import Survey
from blackwell_infer.engine.rehearsal import Hollow
from blackwell_infer.engine.runner import token_state
from blackwell_infer.engine.scheduler import Plan, Row, pages_for
from blackwell_infer.engine.step import Model
from blackwell_infer.kernels.cost import Cost
from blackwell_infer.ops.batch import TokenState
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.ops.cuda.catalog import LIBRARY_COSTS
from blackwell_infer.ops.cuda.stream import TILE, read
from blackwell_infer.types import Array, Sampling

LEAD_MS = 1.0
"""Work queued ahead of a measurement, so that the device never waits for the host within it"""
LARGEST_READ = 8 << 30
"""Bytes that a measurement of the bandwidth reads, or what fits"""
READS = 9


class Clock(Queue, Protocol):
    """A queue that can tell how long work takes."""

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        """Milliseconds that the device spends on what `work` queues."""
        ...


class Phase(msgspec.Struct, frozen=True):
    """All launches of one kind in a step. `cost` is their sum; `us` the microseconds they take, None if not timed."""

    kernel: str
    shape: str
    grid: Dim
    block: Dim
    launches: int
    cost: Cost
    us: float | None = None


class Profile(msgspec.Struct, frozen=True):
    """A decode step of rows with so many keys each, its own included. `step_us`: the whole step as one graph."""

    lengths: tuple[int, ...]
    phases: tuple[Phase, ...]
    step_us: float | None = None

    @property
    def cost(self) -> Cost:
        """What the whole step moves and computes."""
        return sum((phase.cost for phase in self.phases), Cost())

    @property
    def kernels_us(self) -> float | None:
        """The phases together."""
        times = [phase.us for phase in self.phases]
        return None if None in times else sum(t for t in times if t is not None)

    @property
    def gap_us(self) -> float | None:
        """What the step takes beyond its phases; negative where they overlap."""
        return None if self.step_us is None or self.kernels_us is None else self.step_us - self.kernels_us


def decode_work(lengths: Sequence[int], slots: int, context: int, pages: int) -> Work:
    """The greedy step of rows that have so many keys with their new token; block tables wrap around at `pages`."""
    rows, taken = [], 0
    for i, n in enumerate(lengths):
        count = pages_for(n)
        rows.append(Row(id=i, slot=i, tokens=(0,), start=n - 1, pages=tuple((taken + j) % pages for j in range(count)),
                        new_pages=count, restart=True, samples=True, scores=False, home=i))
        taken += count
    batch = make_batch(Plan(tuple(rows)), Tables(slots, pages_for(context)))
    nothing = np.zeros(0, np.int32)
    params = make_params(rows, [Settings(Sampling(temperature=0), 0)] * len(rows))
    return Work(batch, params, np.arange(len(rows), dtype=np.int32), (), nothing, nothing, False)


class Recording(msgspec.Struct, frozen=True):
    """The launches of a decode step of rows with so many keys, and its inputs, which replays read."""

    lengths: tuple[int, ...]
    launches: tuple[Recorded, ...]
    inputs: Inputs


def record(queue: Queue, model: Model, tokens: TokenState, context: int, lengths: Sequence[int],
           reproducible: bool) -> Recording:
    """Run a decode step, padded to its bucket as the engine would, and list its launches."""
    slots, pages = model.penalties.counts.shape[0], model.kv.layers[0].data.shape[0]
    work = decode_work(lengths, slots, context, pages)
    bucket = Space(slots, context).bucket(work)
    assert bucket is not None
    inputs = Inputs(queue, bucket)
    inputs.upload(queue, work)
    recorder = Recorder(queue)
    with queue.step():
        step.run(CudaOps(recorder, reproducible), model, tokens, inputs.work)
    return Recording(tuple(lengths), tuple(recorder.launches), inputs)


class DryModel:
    """A model on a queue that runs nothing, for what steps of it cost. `pages` are pretended: nothing is written."""

    def __init__(self, found: Survey, checkpoint: Checkpoint, context: int, slots: int, queue: DryQueue) -> None:
        self.queue = queue
        self.context = context
        self.reproducible = found.build.reproducible
        self.model = found.build.model(queue, Hollow(queue, checkpoint.tensors, found.build), context, slots, 1)
        self.tokens = token_state(queue, slots)

    def profile(self, lengths: Sequence[int]) -> Profile:
        """A decode step without times."""
        return untimed(record(self.queue, self.model, self.tokens, self.context, lengths, self.reproducible))


def grouped(recorded: Sequence[Recorded]) -> list[list[Recorded]]:
    """Launches of a kind together, kinds in order of their first launch."""
    groups: dict[tuple[object, ...], list[Recorded]] = {}
    for launch in recorded:
        groups.setdefault(kind(launch), []).append(launch)
    return list(groups.values())


def kind(launch: Recorded) -> tuple[object, ...]:
    """What launches of one phase have in common."""
    if isinstance(launch, Launched):
        arrays = tuple(arg.shape if isinstance(arg, Array) else None for arg in launch.args)
        return launch.variant.key, launch.grid, launch.block, arrays
    return launch.name, *(array.shape for array in (*launch.reads, *launch.writes))


def untimed(recording: Recording) -> Profile:
    """The phases of a recorded step by their cost alone."""
    lengths = recording.lengths
    return Profile(lengths, tuple(phase(group, lengths) for group in grouped(recording.launches)))


def phase(group: Sequence[Recorded], lengths: tuple[int, ...]) -> Phase:
    """Launches of one kind, added up."""
    cost = sum((cost_of(launch, lengths) for launch in group), Cost())
    first = group[0]
    if isinstance(first, Launched):
        return Phase(first.variant.key, shape_of(first), first.grid, first.block, len(group), cost)
    (m, _), (n, _) = first.reads[0].shape, first.reads[len(first.reads) // 2].shape
    return Phase(first.name, f"M {m} N {n}", (0, 0, 0), (0, 0, 0), len(group), cost)


def cost_of(launch: Recorded, lengths: tuple[int, ...]) -> Cost:
    """The declared cost of a launch."""
    if isinstance(launch, Launched):
        return launch.variant.kernel.estimate(launch.args, lengths)
    return LIBRARY_COSTS[launch.name](launch.reads, launch.writes)


def shape_of(launch: Launched) -> str:
    """The integers of a launch by their names, "M 1 N 4096 K 4096"."""
    params = zip(launch.variant.kernel.params, launch.args, strict=True)
    return " ".join(f"{p.name} {arg}" for p, arg in params if p.name.isupper() and isinstance(arg, int))


def timed(queue: Clock, recording: Recording, repeat: int) -> Profile:
    """The phases of a step that was recorded on `queue`, with medians of `repeat` timings each."""
    def graph(launches: Sequence[Recorded]) -> Captured:
        def replay() -> None:
            for launch in launches:
                launch.run(queue)

        return queue.capture(replay)

    lengths, whole = recording.lengths, graph(recording.launches)
    whole.run()
    lead = max(1, round(LEAD_MS / max(queue.elapsed_ms(whole.run), 1e-3)))

    def median_us(captured: Captured) -> float:
        times = []
        for _ in range(repeat):
            for _ in range(lead):
                whole.run()
            times.append(queue.elapsed_ms(captured.run))
        return 1e3 * statistics.median(times)

    phases = []
    for group in grouped(recording.launches):
        part = graph(group)
        part.run()
        phases.append(msgspec.structs.replace(phase(group, lengths), us=median_us(part)))
        part.close()
    result = Profile(lengths, tuple(phases), median_us(whole))
    whole.close()
    return result


class Bandwidth(msgspec.Struct, frozen=True):
    """Bytes per second that a plain kernel reads, and of how many bytes; none for a figure that was given."""

    rate: float
    nbytes: int = 0


def measure_bandwidth(queue: Clock) -> Bandwidth:
    """The median of several reads of a large array. OutOfMemoryError if not even 64 MiB are free."""
    free, _ = queue.memory()
    tiles = max(min(LARGEST_READ, int(free * 0.8)), 64 << 20) // (4 * TILE)
    words, out = queue.empty((tiles * TILE,), np.uint32), queue.empty((tiles,), np.uint32)

    def once() -> None:
        read(queue, words, out)

    once()
    times = []
    for _ in range(READS):
        once()
        times.append(queue.elapsed_ms(once))
    return Bandwidth(words.nbytes / (1e-3 * statistics.median(times)), words.nbytes)
