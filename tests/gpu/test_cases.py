"""Every case of every op on the GPU, against the reference."""
from __future__ import annotations

import gc

import pytest

from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.ops import ref
from blackwell_infer.ops.cases import CASES, Case, check, run_case
from blackwell_infer.ops.cuda import CudaOps

pytestmark = pytest.mark.gpu


def run(queue: CudaQueue, case: Case) -> None:
    expected = run_case(ref, case, lambda a: a, lambda a: a)
    check(case, expected, run_case(CudaOps(queue), case, queue.put, lambda t: queue.download(t).result()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_kernels_agree_with_the_reference(queue: CudaQueue, case: Case) -> None:
    run(queue, case)


@pytest.mark.parametrize("case", [c for c in CASES if c.op == "linear" and "T1/" not in c.name], ids=lambda c: c.name)
def test_matmuls_need_no_library(queue: CudaQueue, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "libraries", frozenset())
    run(queue, case)


def test_a_step_gives_the_same(queue: CudaQueue) -> None:
    gc.collect()
    for case in CASES:
        if case.op in ("embed", "linear", "rms_norm", "swiglu", "attend"):
            with queue.step():
                run(queue, case)
