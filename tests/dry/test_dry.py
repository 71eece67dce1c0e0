"""The laws that the dry queue asserts of a step, its memory accounting, and traces."""
from __future__ import annotations

import gc
import itertools
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackwell_infer.device.arena import ALIGN, BLOCK, Arena
from blackwell_infer.device.check import Signature, check_shape
from blackwell_infer.device.dry import DryBlock, DryQueue
from blackwell_infer.device.trace import difference, from_lines, same_grids, to_lines
from blackwell_infer.errors import DeviceError, KernelError, OutOfMemoryError
from blackwell_infer.kernels.kernel import Kernel, Param

SCALE = Kernel("scale.cu", "scale", (
    Param("x", "in", "bfloat16"), Param("y", "out"), Param("n", "i32"), Param("factor", "f32"), Param("big", "u64")),
    {"TILE": (1, 2)})
ONE = (1, 1, 1)


def run(q: DryQueue, tokens: int, tile: int = 1) -> None:
    with q.step():
        x = q.put(np.zeros(tokens, ml_dtypes.bfloat16))
        y = q.empty((tokens,), np.float32)
        q.launch(SCALE.variant(TILE=tile), (tokens, 1, 1), (32, 1, 1), x, y, tokens, 0.5, 2**40, pdl=True)


def test_arguments_are_packed_at_exact_widths() -> None:
    signature = Signature(SCALE)
    buffer = bytearray(signature.nbytes)
    x = DryQueue().empty((3,), ml_dtypes.bfloat16)
    signature.pack(buffer, (x, None, -2, 1.5, 2**63))
    words = np.frombuffer(buffer, np.uint64)
    assert words[0] == x.ptr and words[1] == 0 and words[4] == 2**63
    assert words.view(np.int32)[4] == -2 and words.view(np.float32)[6] == 1.5


@pytest.mark.parametrize(("position", "value", "message"), [
    (0, 7, "argument 0 .x. must be a device array of bfloat16"), (2, 2**31, "argument 2 .n. must be a number of i32"),
    (2, 1.0, "n. must be a number of i32, not float"), (3, "a", "factor. must be a number of f32"),
    (3, 1e39, "factor. must be a number of f32"), (4, -1, "big. must be a number of u64"), (2, None, "not null"),
    (1, np.zeros(2), "not host array float64"),
])
def test_a_wrong_argument_is_named(position: int, value: object, message: str) -> None:
    q = DryQueue()
    args: list[object] = [q.empty((3,), ml_dtypes.bfloat16), None, 1, 1.0, 1]
    args[position] = value
    with pytest.raises(DeviceError, match=message):
        q.launch(SCALE.variant(TILE=1), ONE, ONE, *args)  # type: ignore[arg-type]


def test_dtype_and_count_are_checked() -> None:
    q = DryQueue()
    with pytest.raises(DeviceError, match=r"x. must be a device array of bfloat16, or None, not float32\[3\]"):
        q.launch(SCALE.variant(TILE=1), ONE, ONE, q.empty((3,), np.float32), None, 1, 1.0, 1)
    with pytest.raises(DeviceError, match="2 arguments given, 5 declared"):
        q.launch(SCALE.variant(TILE=1), ONE, ONE, None, None)


@pytest.mark.parametrize(("grid", "block", "smem"), [
    ((0, 1, 1), ONE, 0), ((1, 65536, 1), ONE, 0), (ONE, (1024, 2, 1), 0), (ONE, (1, 1, 65), 0),
    (ONE, ONE, 99 * 1024 + 1),
])
def test_launch_shapes_have_limits(grid: tuple[int, int, int], block: tuple[int, int, int], smem: int) -> None:
    with pytest.raises(DeviceError, match="scale"):
        check_shape(SCALE.variant(TILE=1), "sm_120f", grid, block, smem)


def test_a_kernel_of_another_arch_is_refused() -> None:
    kernel = Kernel("a.cu", "a", (), archs=("sm_120f",))
    with pytest.raises(KernelError, match="no kernel for sm_90a; it exists for sm_120f"):
        DryQueue("sm_90a").launch(kernel.variant(), ONE, ONE)


def test_laws_of_a_step() -> None:
    q = DryQueue()
    x = q.zeros((4,), np.float32)
    with q.step():
        with pytest.raises(DeviceError, match="outside the arena"):
            q.zeros((4,), np.float32)
        pending = q.download(x)
        with pytest.raises(DeviceError, match="host read"):
            pending.result()
        old = q.empty((4,), ml_dtypes.bfloat16)
        with pytest.raises(DeviceError, match="a step inside"), q.step():
            pass
    assert pending.result().tolist() == [0, 0, 0, 0]
    q.download(old)
    with q.step(), pytest.raises(DeviceError, match="belongs to step 1, but step 2"):
        q.launch(SCALE.variant(TILE=1), ONE, ONE, old, None, 1, 1.0, 1)


def test_a_captured_step_repeats_its_launches_and_copies_nothing() -> None:
    q = DryQueue()
    x = q.zeros((4,), ml_dtypes.bfloat16)

    def work() -> None:
        q.launch(SCALE.variant(TILE=1), ONE, ONE, x, q.empty((4,), np.float32), 1, 1.0, 1, pdl=True)

    with q.step():
        work()
    used, graph = q.arena.reserved, q.capture(work)
    assert len(q.trace) == 1, "a capture runs nothing"
    graph.run()
    assert q.trace[0] == q.trace[1] and q.arena.reserved == used
    host = np.zeros(4, ml_dtypes.bfloat16)
    for copy in (lambda: q.upload(x, host), lambda: q.put(host), lambda: q.download(x),
                 lambda: q.zeros((1,), np.int8)):
        with pytest.raises(DeviceError, match="inside a"):
            q.capture(copy)
    with q.step(), pytest.raises(DeviceError, match="a step inside"):
        graph.run()
    with q.step():
        kept = q.empty((4,), ml_dtypes.bfloat16)
    with pytest.raises(DeviceError, match="has reused its memory"):
        q.capture(lambda: q.launch(SCALE.variant(TILE=1), ONE, ONE, kept, None, 1, 1.0, 1))
    assert len(q.trace) == 2
    q.download(x)


def test_a_view_has_the_same_bytes() -> None:
    x = DryQueue().zeros((3, 8), np.uint8)
    assert x.view(np.int32).shape == (3, 2) and x[1].view(np.uint64).ptr == x.ptr + 8
    with pytest.raises(ValueError, match="no whole uint64"):
        x.reshape(24)[4:].view(np.uint64)


def test_foreign_and_overlong_tensors_are_refused() -> None:
    q, other = DryQueue(), DryQueue()
    x = q.empty((4,), ml_dtypes.bfloat16)
    beyond = type(x)(x.ptr, (4096,), x.dtype, x.base)
    for bad, message in ((beyond, "beyond its block"), (type(x)(4, (4,), x.dtype, None), "not memory of this queue")):
        with pytest.raises(DeviceError, match=message):
            q.launch(SCALE.variant(TILE=1), ONE, ONE, bad, None, 1, 1.0, 1)
    assert other.trace == []


def test_memory_is_counted_and_bounded() -> None:
    q = DryQueue(total=2 * BLOCK)
    block = q.zeros((BLOCK // 4,), np.float32)
    assert q.memory() == (BLOCK, 2 * BLOCK) and q.persistent == BLOCK
    with q.step():
        kept = q.empty((1000,), np.float32)
        with pytest.raises(OutOfMemoryError, match=f"needs {BLOCK} bytes .* 0 bytes .* free"):
            q.empty((BLOCK // 4,), np.float32)
    del block, kept
    gc.collect()
    assert q.persistent == 0 and q.memory()[0] == BLOCK and q.peak == 2 * BLOCK and q.arena.peak == 4096


def test_arena_repeats_addresses_and_grows_by_blocks() -> None:
    sizes = (10, ALIGN, BLOCK, 3 * BLOCK + 1, 5, 0)
    made: list[DryBlock] = []

    def allocate(nbytes: int) -> DryBlock:
        made.append(DryBlock(1 << (40 + len(made)), nbytes))
        return made[-1]

    arena = Arena(allocate)
    steps = []
    for _ in range(3):
        arena.reset()
        taken = [arena.take(n) for n in sizes]
        steps.append([ptr for ptr, _ in taken])
    assert steps[0] == steps[1] == steps[2] and all(p % ALIGN == 0 for p in steps[0])
    assert [b.nbytes for b in made] == [BLOCK, BLOCK, 4 * BLOCK] and arena.reserved == 6 * BLOCK
    assert arena.peak == 2 * ALIGN + BLOCK + 3 * BLOCK + ALIGN + 2 * ALIGN


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5000)), max_size=60), st.randoms(use_true_random=False))
def test_arena_gives_memory_back_as_leases_die(moves: list[tuple[bool, int]], random: Random) -> None:
    arena = Arena(lambda nbytes: DryBlock(1 << 40, nbytes))
    arena.reset()
    held: list[Any] = []
    for taking, n in moves:
        if taking or not held:
            held.append(arena.take(n))
        else:
            held.pop(random.randrange(len(held)))
        ranges = sorted((ptr, ptr + lease.size) for ptr, lease in held)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
    stale = arena.take(1)
    arena.reset()
    held.clear()
    del stale
    first = arena.take(1)
    assert first[0] == 1 << 40
    del first
    assert arena.take(BLOCK)[0] == 1 << 40 and arena.reserved == BLOCK


def test_traces_compare_and_survive_json() -> None:
    a, b, c = DryQueue(), DryQueue(), DryQueue()
    run(a, 8)
    run(b, 8)
    run(c, 9, tile=2)
    assert same_grids(a.trace, b.trace) and difference(a.trace, b.trace) == ""
    assert not same_grids(a.trace, c.trace)
    text = difference(a.trace, c.trace)
    assert "-scale(TILE=1) grid (8, 1, 1)" in text and "+scale(TILE=2) grid (9, 1, 1)" in text
    assert from_lines(to_lines(a.trace)) == a.trace
    assert a.trace[0].args == ("bfloat16[8]", "float32[8]", "int 8", "float 0.5", f"int {2**40}") and a.trace[0].pdl


def test_library_calls_are_recorded_not_run() -> None:
    q = DryQueue(libraries=frozenset({"cublaslt"}))
    x = q.empty((4, 4), np.float32)

    def call(stream: int, workspace: int, nbytes: int) -> None:
        raise AssertionError("a dry queue runs nothing")

    q.library("cublaslt", call, (x,), (x,))
    assert q.trace[0].entry == "cublaslt" and q.trace[0].args == ("float32[4,4]", "float32[4,4]")
    with pytest.raises(DeviceError, match="library other is not among"):
        q.library("other", call, (x,), (x,))


def test_owned_objects_live_once_and_are_closed() -> None:
    closed: list[int] = []

    class Plans:
        def close(self) -> None:
            closed.append(1)

    q = DryQueue()
    assert q.owned(Plans) is q.owned(Plans)
    q.close()
    q.close()
    assert closed == [1]
