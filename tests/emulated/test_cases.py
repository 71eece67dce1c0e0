"""Every op case: the CUDA kernels in the PTX interpreter against the NumPy reference."""
from __future__ import annotations

from collections.abc import Callable

import pytest

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.ops import cases, ref
from blackwell_infer.ops.cuda import CudaOps

LARGE = "V151936"
"""vocabularies that only the regular schedule runs"""
EXCHANGES = ("attend", "linear", "logits", "qkv_rope_append_", "sample_", "rms_norm", "add_rms_norm",
             "route", "experts", "gated_delta_")
"""ops whose kernels exchange data between threads: a missing barrier shows under a random schedule"""
MIXED = [c for i, c in enumerate(c for c in cases.CASES if LARGE not in c.name and c.op.startswith(EXCHANGES))
         if i % 12 == 3]
HOPPER = [pytest.param(c, id=c.name, marks=pytest.mark.slow if i % 3 else ()) for i, c in enumerate(cases.CASES)]
"""the build that a GPU checks with the same cases (tests/gpu/test_cases.py): the others run with `make slow`"""


def agree(queue: EmulatedQueue, case: cases.Case) -> None:
    expected = cases.run_case(ref, case, lambda a: a.copy(), lambda a: a)
    with queue.step():
        got = cases.run_case(CudaOps(queue), case, queue.put, lambda t: queue.download(t).result())
    cases.check(case, expected, got)


@pytest.mark.parametrize("case", HOPPER)
def test_case_equals_the_reference(emulated: Callable[..., EmulatedQueue], case: cases.Case) -> None:
    agree(emulated("sm_90a"), case)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: c.name)
def test_the_blackwell_build_equals_the_reference(emulated: Callable[..., EmulatedQueue], case: cases.Case) -> None:
    agree(emulated("sm_120f"), case)


@pytest.mark.parametrize("case", MIXED, ids=lambda c: c.name)
def test_no_case_depends_on_the_order_of_warps(emulated: Callable[..., EmulatedQueue], case: cases.Case) -> None:
    agree(emulated("sm_90a", seed=len(case.name)), case)
