"""Every op case: the CUDA kernels on the GPU at hand against the NumPy reference."""
from __future__ import annotations

import pytest

from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.ops import cases, ref
from blackwell_infer.ops.cuda import CudaOps

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: c.name)
def test_case_equals_the_reference(queue: CudaQueue, case: cases.Case) -> None:
    expected = cases.run_case(ref, case, lambda a: a.copy(), lambda a: a)
    with queue.step():
        got = cases.run_case(CudaOps(queue), case, queue.put, lambda t: queue.download(t).result())
    cases.check(case, expected, got)
