"""The laws of a Gated DeltaNet layer on its kernels, bit for bit: tokens one by one, rows alone, slots, cuts, warps.

What the kernels compute is compared with NumPy in test_cases.py.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.errors import KernelError
from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.ops import cases, ref
from blackwell_infer.ops.cases_recurrent import Heads, Line, make_delta
from blackwell_infer.ops.cuda import CudaOps, recurrent
from blackwell_infer.ops.cuda.staged import Staged, staged

Emulated = Callable[..., EmulatedQueue]
Values = np.ndarray[Any, Any]
SMALL, FAST = Heads(2, 4, 16, 8), Heads(1, 2, 128, 128)


def made(seed: int, heads: Heads, lines: tuple[Line, ...], dtype: str = "bfloat16", stored: str = "float32",
         padding: int = 0) -> dict[str, Any]:
    return make_delta(np.random.default_rng(seed), dtype, stored, heads, lines, padding, False, 1.0, ())


def run(queue: EmulatedQueue, inputs: dict[str, Any], reproducible: bool = False) -> tuple[Values, Values, Values]:
    """Result, and conv and state of all slots, as bytes."""
    kwargs = {name: cases.walk(value, queue.put) for name, value in inputs.items()}
    with queue.step():
        out = CudaOps(queue, reproducible).gated_delta_(**kwargs)
        found = [np.array(queue.download(a[:]).result()) for a in (out, kwargs["state"].conv, kwargs["state"].state)]
    return found[0].view(np.uint8), found[1].view(np.uint8), found[2].view(np.uint8)


def part(inputs: dict[str, Any], row: int, state: Recurrent, first: int = 0, last: int | None = None,
         source: int | None = None) -> dict[str, Any]:
    """Tokens first .. last - 1 of one row alone, over these slots, continuing slot `source`."""
    batch = inputs["batch"]
    begin, end = int(batch.starts[row]) + first, int(batch.starts[row]) + last if last is not None else int(
        batch.starts[row + 1])
    slot = batch.state_from[row] if source is None else source
    alone = msgspec.structs.replace(
        batch, starts=np.asarray([0, end - begin], np.int32), rows=np.zeros(end - begin, np.int32),
        state_from=np.asarray([slot], np.int32), state_to=batch.state_to[begin:end], max_new=end - begin)
    return inputs | {"proj": inputs["proj"][begin:end], "batch": alone, "state": state}


def there(inputs: dict[str, Any], found: tuple[Values, Values, Values]) -> Recurrent:
    """The slots after a run."""
    state = inputs["state"]
    return Recurrent(found[1].view(state.conv.dtype), found[2].view(state.state.dtype))


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("heads", [SMALL, FAST], ids=["small", "fast"])
@pytest.mark.parametrize("count", [9, 16])
def test_one_by_one_gives_the_bits_of_all_at_once(emulated: Emulated, heads: Heads, stored: str, count: int) -> None:
    """So a rejected draft is forgotten by continuing the slot of the last token that was accepted."""
    queue, inputs = emulated("sm_90a"), made(1, heads, (Line(True, count, tuple(range(count))),), stored=stored)
    together = run(queue, inputs)
    state, source = inputs["state"], int(inputs["batch"].state_from[0])
    for t in range(count):
        found = run(queue, part(inputs, 0, state, t, t + 1, source))
        assert np.array_equal(found[0][0], together[0][t])
        state, source = there(inputs, found), int(inputs["batch"].state_to[t])
    assert np.array_equal(found[1], together[1])
    assert np.array_equal(found[2], together[2])


@pytest.mark.parametrize("heads", [SMALL, FAST], ids=["small", "fast"])
def test_a_row_has_the_bits_that_it_has_alone(emulated: Emulated, heads: Heads) -> None:
    lines = (Line(True, 3, (2,), True), Line(True, 70, (20, 69), True), Line(False, 1, (0,)), Line(False, 17, (16,)))
    queue, inputs = emulated("sm_90a"), made(2, heads, lines, padding=3)
    together, slots = run(queue, inputs), inputs["batch"].state_to
    for row in range(len(lines)):
        first, last = (int(inputs["batch"].starts[row + i]) for i in range(2))
        alone = run(queue, part(inputs, row, inputs["state"]))
        assert np.array_equal(alone[0], together[0][first:last])
        for slot in slots[first:last][slots[first:last] >= 0]:
            assert np.array_equal(alone[1][slot], together[1][slot])
            assert np.array_equal(alone[2][slot], together[2][slot])
    assert not together[0][int(inputs["batch"].starts[-1]) :].any()


@pytest.mark.parametrize("heads", [SMALL, FAST], ids=["small", "fast"])
def test_reproducible_prompts_may_be_cut_anywhere(emulated: Emulated, heads: Heads) -> None:
    queue, inputs = emulated("sm_90a"), made(3, heads, (Line(False, 37, (19, 36)),))
    together = run(queue, inputs, reproducible=True)
    before = run(queue, part(inputs, 0, inputs["state"], 0, 20), reproducible=True)
    after = run(queue, part(inputs, 0, there(inputs, before), 20, 37, int(inputs["batch"].state_to[19])),
                reproducible=True)
    assert np.array_equal(np.concatenate((before[0], after[0])), together[0])
    assert np.array_equal(after[2], together[2])


@pytest.mark.parametrize("heads", [SMALL, FAST], ids=["small", "fast"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_warps_does_not_matter(emulated: Emulated, heads: Heads, seed: int) -> None:
    lines = (Line(True, 5, (1, 4), True), Line(True, 100, (30, 99), True))
    inputs = made(4, heads, lines)
    for mine, regular in zip(run(emulated("sm_90a", seed=seed), inputs), run(emulated("sm_90a"), inputs), strict=True):
        assert np.array_equal(mine, regular)


@pytest.mark.parametrize("heads", [SMALL, FAST], ids=["small", "fast"])
@pytest.mark.parametrize("column", [3, -1, -9], ids=["query", "decay", "gate"])
def test_a_nan_stays_in_its_row(emulated: Emulated, heads: Heads, column: int) -> None:
    lines = (Line(True, 2, (1,)), Line(True, 40, (39,)), Line(True, 20, (19,)))
    queue, inputs = emulated("sm_90a"), made(5, heads, lines, dtype="float32")
    clean, proj = run(queue, inputs), inputs["proj"].copy()
    proj[[1, 3], column] = np.nan
    spoiled = run(queue, inputs | {"proj": proj})
    for row, has in ((0, True), (1, True), (2, False)):
        rows = slice(int(inputs["batch"].starts[row]), int(inputs["batch"].starts[row + 1]))
        values = spoiled[0][rows].view(np.float32)
        assert np.isnan(values).any() == has
    assert np.array_equal(spoiled[0][:1], clean[0][:1])
    assert np.array_equal(spoiled[0][42:], clean[0][42:])


def test_chunks_are_as_exact_as_float32(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """States after 200 tokens, in chunks and one by one, against a walk in float64."""
    inputs = made(6, FAST, (Line(True, 200, (199,)),), dtype="float32")
    slot = int(inputs["batch"].state_to[-1])
    chunks, walked = (run(emulated("sm_90a"), inputs, mode)[2].view(np.float32)[slot] for mode in (False, True))
    monkeypatch.setattr("blackwell_infer.ops.ref.recurrent.FEW", 1000)
    wide = Recurrent(inputs["state"].conv.astype(np.float64), inputs["state"].state.astype(np.float64))
    ref.gated_delta_(**inputs | {"state": wide, "proj": inputs["proj"].astype(np.float64)})
    exact = np.asarray(wide.state)[slot]
    assert np.abs(chunks - exact).max() <= 2e-6
    assert np.abs(walked - exact).max() <= 2e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_results_lie_ready_for_the_next_product(emulated: Emulated, dtype: str) -> None:
    lines = (Line(True, 2, (1,)), Line(False, 1, (0,)))  # four tokens: nothing between the powers and what follows
    queue, inputs = emulated("sm_90a"), made(7, Heads(1, 4, 128, 128), lines, dtype, padding=1)
    kwargs = {name: cases.walk(value, queue.put) for name, value in inputs.items()}
    with queue.step():
        out = CudaOps(queue).gated_delta_(**kwargs)
        assert isinstance(out, Staged)
        mine, anew = (queue.download(s.blocks).result() for s in (out, staged(queue, out.rows)))
    assert np.array_equal(mine, anew)


@pytest.mark.parametrize("heads", [SMALL, FAST], ids=["small", "fast"])
def test_more_rows_than_counters_go_in_several_launches(emulated: Emulated, heads: Heads,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = made(8, heads, tuple(Line(True, 1, (0,), True) for _ in range(7)), padding=2)
    together = run(emulated("sm_90a"), inputs)
    monkeypatch.setattr(recurrent, "COUNTERS", 3 * heads.nv)
    for mine, all_at_once in zip(run(emulated("sm_90a"), inputs), together, strict=True):
        assert np.array_equal(mine, all_at_once)


def test_what_no_kernel_takes_is_refused(emulated: Emulated) -> None:
    for heads, fault in ((Heads(1, 1, 256, 256), "bytes of shared memory"), (Heads(2, 3, 8, 8), "no multiple of 2")):
        with pytest.raises(KernelError, match=fault):
            run(emulated("sm_90a"), made(9, heads, (Line(False, 1, (0,)),)))
