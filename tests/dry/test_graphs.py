"""Decode steps in buckets on the dry queue: laws of a recorded step, what decides a bucket, and too little memory."""
from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.device.dry import DryQueue
from blackwell_infer.device.trace import difference, same_grids
from blackwell_infer.engine.batch import Settings, Tables, Work, make_batch, make_params
from blackwell_infer.engine.graphs import Bucket, GraphRunner, Inputs, Space
from blackwell_infer.engine.head import head_work
from blackwell_infer.engine.packed import Packed, arrays_of
from blackwell_infer.engine.scheduler import Plan, Row, Sequence, pages_for
from blackwell_infer.engine.state import Build
from blackwell_infer.engine.weights import DeviceLoading, Meter, hollow, placing
from blackwell_infer.errors import OutOfMemoryError
from blackwell_infer.log import silent
from blackwell_infer.models.registry import find_family
from blackwell_infer.ops.batch import TokenMask
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.types import Sampling

DATA = Path(__file__).resolve().parents[1] / "data"
BATCH, CONTEXT = 20, 2000


def runner(total: int = 1 << 40, capture: bool = True, name: str = "qwen3") -> tuple[DryQueue, GraphRunner]:
    """A small model on a dry queue of so many bytes."""
    checkpoint = open_checkpoint(DATA / name)
    family = find_family(checkpoint.config)
    build = Build(family, family.config(checkpoint.config), "bfloat16", head=family.draft is not None)
    queue = DryQueue("sm_90a", total=total)
    loading = DeviceLoading(queue, checkpoint.tensors, hollow(checkpoint.tensors), Meter(0, silent),
                            placing("full", CudaOps(queue).arrange))
    return queue, GraphRunner(queue, CudaOps(queue), build.model(queue, loading, CONTEXT, BATCH, 1), CONTEXT, capture)


def decode(lengths: list[int], top: int | None = None, biases: int = 0) -> Work:
    """A decode step of rows that have so many keys with their new token, whose ids only the device knows."""
    rows = tuple(Row(id=i, slot=i, tokens=(-1,), start=n - 1, pages=tuple(range(pages_for(n))), new_pages=0,
                     restart=True, samples=True, scores=False) for i, n in enumerate(lengths))
    batch = make_batch(Plan(rows), Tables(BATCH, pages_for(CONTEXT)))
    setting = Settings(Sampling(logprobs=top), 7, tuple(range(biases)), (1.0,) * biases)
    return Work(batch, make_params(rows, [setting] * len(rows)), np.arange(len(rows), dtype=np.int32), (),
                np.zeros(0, np.int32), np.zeros(0, np.int32), False)


def test_a_recorded_step_launches_what_an_unrecorded_one_does() -> None:
    queue, run = runner()
    traces = []
    for lengths in ([3, 900, 5], [700, 600, 513], [4, 800, 1], [1000, 2, 3, 4]):
        queue.trace.clear()
        run.launch(decode(lengths))
        traces.append(list(queue.trace))
    assert run.captured == (Bucket(4, 1024, 0, 0),), "the second step of a bucket is recorded, the first is not"
    for trace in traces[1:]:
        assert same_grids(traces[0], trace) and traces[0] == trace, difference(traces[0], trace)
    assert all(launch.pdl for launch in traces[0])
    assert run.nbytes == sum(plate.inputs.block.nbytes for plate in run._plates.values())


def test_records_and_inputs_take_no_step_memory() -> None:
    queue, run = runner()
    for lengths in ([1], [5], [9], [1] * 17, [2] * 17):
        run.launch(decode(lengths))
    reserved, persistent = queue.arena.reserved, queue.persistent
    for _ in range(3):
        run.launch(decode([8]))
        run.launch(decode([7] * 17))
    assert (queue.arena.reserved, queue.persistent) == (reserved, persistent)


def test_buckets_are_few_and_decided_by_shapes() -> None:
    space = Space(40, 40960)
    assert space.all_rows == (1, 2, 4, 8, 16, 24, 32, 40)
    assert space.all_lengths == (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 40960)
    assert Space(3, 200).all_rows == (1, 2, 3) and Space(3, 200).all_lengths == (200,)
    small = Space(BATCH, CONTEXT)
    assert small.bucket(decode([5, 300, 7])) == Bucket(4, 512, 0, 0)
    assert small.bucket(decode([5] * 9, top=0)) == Bucket(16, 256, 0, 0)
    assert small.bucket(decode([1999] * 17, top=20)) == Bucket(20, 2000, 20, 0)
    assert small.bucket(decode([5], top=3, biases=5)) == Bucket(1, 256, 4, 8)


def guessing(rows: list[tuple[int, int]]) -> Work:
    """A step of rows (keys without guesses, guesses)."""
    made = tuple(Row(id=i, slot=i, tokens=(9,) * (1 + k), start=n - 1, pages=tuple(range(pages_for(n + k))),
                     new_pages=0, restart=True, samples=True, scores=False, home=i, guesses=k,
                     spares=tuple(range(30, 30 + k))) for i, (n, k) in enumerate(rows))
    batch = make_batch(Plan(made), Tables(BATCH, pages_for(CONTEXT)))
    slots = np.full(len(batch.outputs), -1, np.int32)
    return Work(batch, make_params(made, [Settings(Sampling(logprobs=1, frequency_penalty=1.0), 7)] * len(made)),
                slots, (), np.zeros(0, np.int32), np.zeros(0, np.int32), False)


def test_steps_with_guesses_have_buckets_of_their_own() -> None:
    space = Space(BATCH, CONTEXT)
    assert space.bucket(guessing([(5, 3)])) == Bucket(1, 256, 1, 0, 4, 4)
    assert space.bucket(guessing([(5, 2), (300, 0), (9, 1)])) == Bucket(4, 512, 1, 0, 8, 4)
    work = guessing([(5, 2), (300, 0), (9, 1)])
    bucket = space.bucket(work)
    assert bucket is not None
    inputs = Inputs(DryQueue(), bucket)
    inputs.upload(DryQueue(), work)
    host = inputs._packed.host
    assert host["rows"].tolist() == [0, 0, 0, 1, 2, 2, -1, -1] and host["starts"].tolist() == [0, 3, 4, 6, 6]
    assert host["guess"].tolist() == [-1, 9, 9, -1, -1, 9, -1, -1]
    assert host["slot"].tolist() == [0, 0, 0, 1, 2, 2, -1, -1]
    assert host["position"].tolist()[:6] == [5, 6, 7, 300, 9, 10]
    assert host["state_to"].tolist() == [0, 30, 31, 1, 2, 30, -1, -1]
    assert inputs.work.params is not None and inputs.work.params.chained and inputs.work.batch.max_new == 4
    queue, run = runner()
    traces = []
    for rows in ([(3, 3)], [(7, 2)], [(4, 3)]):
        queue.trace.clear()
        run.launch(guessing(rows))
        traces.append(list(queue.trace))
    assert run.captured == (Bucket(1, 256, 1, 0, 4, 4),) and traces[0] == traces[1] == traces[2]


def test_steps_with_masks_are_recorded_in_two_parts_and_others_pay_nothing_for_them() -> None:
    queue, run = runner()
    vocab = run.eager.model.penalties.counts.shape[1]
    words = np.zeros((2, -(-vocab // 32)), np.uint32)
    mask = TokenMask(np.asarray([1, -1, 0], np.int32), words)
    work, parts = decode([3, 900, 5]), []
    for _ in range(3):
        queue.trace.clear()
        flight = run.launch(msgspec.structs.replace(work, masked=True))
        first = list(queue.trace)
        flight.choose(mask)
        parts.append((first, list(queue.trace)[len(first) :]))
    assert run.captured == (Bucket(4, 1024, 0, 0, masked=True),) and parts[0] == parts[1] == parts[2]
    entries = [[launch.entry for launch in part] for part in parts[0]]
    assert "sample_adjust" not in entries[0] and "sample_adjust" in entries[1]
    queue.trace.clear()
    run.launch(work)
    assert len(queue.trace) == len(parts[0][0]) + len(parts[0][1]) - 1, "all but the copy of hidden states"


def test_passes_of_a_head_are_recorded_where_every_row_guesses() -> None:
    queue, run = runner(name="qwen3_5")
    traces = []
    for cached in ([(40, 3), (300, 1), (9, 2)], [(41, 2), (301, 2), (12, 1)], [(500, 1), (7, 3), (30, 3)]):
        known, rows = dict[int, Sequence](), []
        for i, (n, tokens) in enumerate(cached):
            pages = tuple(range(pages_for(n + 8)))
            known[i] = Sequence(id=i, prompt=(5,) * (n + 1), limit=9, cached=n, pages=pages, slot=i)
            rows.append(Row(id=i, slot=i, tokens=(5,) * 4, start=n - tokens, pages=pages, new_pages=0, restart=False,
                            samples=True, scores=False, guesses=3))
        work, ids = head_work(Plan(tuple(rows)), known, Tables(BATCH, pages_for(CONTEXT)), 3, CONTEXT)
        assert work is not None and ids == [0, 1, 2] and len(work.steps) == 3
        queue.trace.clear()
        assert run.guess(work).shape == (3, 3)
        traces.append(list(queue.trace))
    (plate,) = run._heads.values()
    assert plate.graph is not None and traces[0] == traces[1] == traces[2]
    host = plate._packed.host
    assert host["0.rows"].tolist() == [0, 1, 1, 1, 2, 2, 2, -1] and host["0.starts"].tolist() == [0, 1, 4, 7, 7]
    assert host["take"].tolist() == [0, 4, 5, 6, 8, 9, 10, 0] and host["last"].tolist() == [0, 3, 6, 0]
    assert host["1.positions"].tolist() == [500, 7, 30, 0] and host["2.lengths"].tolist() == [502, 9, 32, 0]
    assert host["1.ids"].tolist() == [-1, -2, -3, 0] and host["slots"].tolist() == [0, 1, 2, -1]
    prompt, _ = head_work(Plan((msgspec.structs.replace(rows[0], samples=False),)), known,
                          Tables(BATCH, pages_for(CONTEXT)), 3, CONTEXT)
    assert prompt is not None and len(prompt.steps) == 1 and run.guess(prompt).shape == (1, 0)
    assert len(run._heads) == 1


@given(st.lists(st.integers(1, CONTEXT), min_size=1, max_size=BATCH), st.integers(0, 9))
def test_inputs_hold_the_step_and_harmless_padding(lengths: list[int], biases: int) -> None:
    work = decode(lengths, top=2, biases=biases)
    bucket = Space(BATCH, CONTEXT).bucket(work)
    assert bucket is not None and bucket.rows >= len(lengths) and bucket.length >= max(lengths)
    queue, n = DryQueue(), len(lengths)
    inputs = Inputs(queue, bucket)
    inputs.upload(queue, decode([1] * bucket.rows, biases=0))
    inputs.upload(queue, work)
    host = inputs._packed.host
    for name, values in arrays_of(work).items():
        if name not in ("pages", "outputs"):
            assert np.array_equal(host[name][: len(values)], values), name
    assert np.array_equal(host["pages"][:n, : work.batch.pages.shape[1]], work.batch.pages)
    assert (host["rows"][n:] == -1).all() and (host["starts"][n:] == n).all() and (host["slot"][n:] == -1).all()
    assert (host["slots"][n:] == -1).all() and not host["temperature"][n:].any() and not host["ids"][n:].any()
    assert (host["bias_starts"][n:] == biases * n).all() and host["outputs"].tolist() == list(range(bucket.rows))
    assert inputs.work.batch.pages.shape == (bucket.rows, pages_for(bucket.length))


def test_packed_arrays_are_aligned_and_come_back() -> None:
    arrays = {"a": np.arange(3, dtype=np.int32), "b": np.arange(2, dtype=np.uint64), "c": np.zeros((2, 0), np.float32),
              "d": np.arange(6, dtype=np.int32).reshape(2, 3)}
    packed = Packed(arrays)
    tensors = packed.views(DryQueue().put(packed.buffer))
    for name, array in arrays.items():
        assert np.array_equal(packed.views(packed.buffer.copy())[name], array)
        assert tensors[name].shape == array.shape and tensors[name].dtype == array.dtype and not tensors[name].ptr % 16


def test_too_little_memory_means_fewer_buckets_and_one_line(caplog: pytest.LogCaptureFixture,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    queue, run = runner()
    for _ in range(2):
        run.launch(decode([5]))
    assert len(run.captured) == 1

    def full(fn: object) -> object:
        raise OutOfMemoryError("0 bytes are free")

    monkeypatch.setattr(queue, "capture", full)
    with caplog.at_level(logging.WARNING):
        for lengths in ([5, 5], [5, 5], [5, 5], [5] * 3, [5] * 3, [5]):
            before = len(queue.trace)
            run.launch(decode(lengths))
            assert len(queue.trace) > before, "the step runs all the same"
    assert len(run.captured) == 1 and len(caplog.records) == 1
    assert "no memory for a graph of 2 rows up to 256 keys beside 1 others" in caplog.text


def test_without_graphs_nothing_is_recorded() -> None:
    _, run = runner(capture=False)
    for _ in range(3):
        run.launch(decode([5, 6]))
    assert run.captured == ()
