"""The PTX interpreter against the hardware: the same machine-independent text, the same inputs, bit for bit.

Only what the interpreter documents may differ, and no more than the bounds below: the last bits of `ex2`, `rcp`,
`rsqrt` and `lg2.approx`, and the order and width in which tensor cores add (docs/emulator.md).
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.ops import cases
from blackwell_infer.ops.cuda import CudaOps

pytestmark = pytest.mark.gpu

EXACT = ("embed", "take_rows", "penalty_load_", "quantize", "newest_tokens", "deliver_")
"""ops whose kernels use neither approximations nor tensor cores"""
PLAIN = ("linear", "logits")
"""ops that are exact in float32, where they are fused multiply-adds in a fixed order"""
BOUND = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Largest difference in units of the output's largest value: one rounding of 16-bit outputs; of float32 outputs, sums
of up to 4096 products that tensor cores add to about 2^-22 of the largest."""
Outputs = Mapping[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def emulated(queue: CudaQueue) -> EmulatedQueue:
    if queue.arch != "sm_90a":
        pytest.skip(f"the builds that run on {queue.arch} use instructions that only it has")
    return EmulatedQueue(queue.arch, queue.builder)


def run(queue: CudaQueue | EmulatedQueue, case: cases.Case) -> Outputs:
    with queue.step():
        return cases.run_case(CudaOps(queue), case, queue.put, lambda t: queue.download(t).result())


def compare(case: cases.Case, name: str, real: np.ndarray[Any, Any], told: np.ndarray[Any, Any]) -> None:
    exact = case.op in EXACT or (case.op in PLAIN and "/float32/" in case.name) or real.dtype.kind in "iu"
    if exact and real.tobytes() == told.tobytes():
        return
    a, b = real.astype(np.float64), told.astype(np.float64)
    finite = np.isfinite(b)
    np.testing.assert_array_equal(a[~finite], b[~finite], err_msg=name)  # NaN by NaN, whatever their payloads
    allowed = 0.0 if exact else BOUND[real.dtype.name] * np.abs(b[finite]).max(initial=0.0)
    worst = np.abs(a[finite] - b[finite]).max(initial=0.0)
    assert worst <= allowed, f"{name}: {worst} of {allowed}"


@pytest.mark.parametrize("case", [c for c in cases.CASES if "V151936" not in c.name], ids=lambda c: c.name)
def test_the_interpreter_computes_what_the_gpu_does(queue: CudaQueue, emulated: EmulatedQueue,
                                                    case: cases.Case) -> None:
    real, told = run(queue, case), run(emulated, case)
    assert list(real) == list(told)
    for name in real:
        compare(case, name, real[name], told[name])
