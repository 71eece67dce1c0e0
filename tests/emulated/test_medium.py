"""Matmuls of some tens of rows over weights in fragment order: large units, and bits that other rows leave alone."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.ops import cases, inputs, ref
from blackwell_infer.ops.cuda import CudaOps, medium
from blackwell_infer.ops.cuda.staged import FEW_ROWS
from blackwell_infer.quant.fragments import SUFFIX

CASES = [c for c in cases.CASES if c.op == "linear" and "_fragments" in c.name
         and any(part in c.name for part in ("/T33/K768/", "/T100/", "/T256/"))]


def launched(queue: EmulatedQueue, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that run from now on."""
    names: list[str] = []
    launch = queue.launch

    def record(v: Any, *args: Any, **options: Any) -> None:
        names.append(v.kernel.entry)
        launch(v, *args, **options)
    monkeypatch.setattr(queue, "launch", record)
    return names


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_two_tiles_a_warp_equal_the_reference(emulated: Callable[..., EmulatedQueue], case: cases.Case,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medium, "MANY", 1)
    queue = emulated("sm_90a", seed=7)
    expected = cases.run_case(ref, case, lambda a: a.copy(), lambda a: a)
    with queue.step():
        got = cases.run_case(CudaOps(queue), case, queue.put, lambda t: queue.download(t).result())
    cases.check(case, expected, got)


@pytest.mark.parametrize("form", medium.FORMATS)
def test_a_row_has_the_same_bits_among_others(emulated: Callable[..., EmulatedQueue], form: str,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU of four multiprocessors several CTAs have parts of a sum."""
    queue, first = emulated("sm_90a"), FEW_ROWS + 1
    kwargs = inputs.make_linear(np.random.default_rng(3), "bfloat16", (form + SUFFIX,), 130, 768, (200,), True, ())
    ops, names = CudaOps(queue), launched(queue, monkeypatch)

    def product(rows: slice) -> Any:
        with queue.step():
            given = {name: cases.walk(value, queue.put) for name, value in kwargs.items() if name != "x"}
            y = ops.linear(queue.put(np.ascontiguousarray(kwargs["x"][rows])), **given)
            return queue.download(y).result().copy().view(np.uint16)

    whole = product(slice(0, 130))
    for rows in (slice(0, first), slice(60, 130), slice(5, 38)):
        assert np.array_equal(product(rows), whole[rows])
    assert names == ["stage", "linear_medium", "linear_medium_sums"] * 4
