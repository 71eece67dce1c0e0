"""What cases do not say of matmuls: a row's bits do not depend on its neighbours, and large shapes are right."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.ops import inputs
from blackwell_infer.ops.cuda import gemm
from blackwell_infer.ops.cuda.linear import linear, logits
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Weight

pytestmark = pytest.mark.gpu


def placed(queue: CudaQueue, form: str, rows: int, cols: int) -> tuple[Weight, np.ndarray[Any, Any]]:
    host = inputs.weight(np.random.default_rng(rows), form, rows, cols)
    parts = tuple(queue.put(np.asarray(part)) for part in host.parts)
    return Weight(host.format, host.shape, parts), FORMATS[form].dequantize(host)


def activations(rows: int, cols: int, dtype: str) -> np.ndarray[Any, Any]:
    return np.random.default_rng(cols).standard_normal((rows, cols)).astype(inputs.DTYPES[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("form", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k", "nvfp4", "nvfp4_f16",
                                  "mxfp4", "mxfp8", "fp8", "fp8_block"])
def test_a_row_has_the_same_bits_alone_and_in_company(queue: CudaQueue, form: str, dtype: str) -> None:
    w, _ = placed(queue, form, 200, 2816)
    x = activations(64, 2816, dtype)

    def run(some: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        out = linear(queue, queue.put(some), (w,))
        assert isinstance(out, Tensor)
        return queue.download(out).result()

    together = run(x)
    for first, last in ((0, 1), (5, 6), (0, 2), (3, 10), (8, 16), (0, 16), (17, 18), (63, 64), (30, 63)):
        assert run(x[first:last]).tobytes() == together[first:last].tobytes(), (first, last)


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("form", ["q4_k", "q6_k", "bf16", "nvfp4", "fp8_block"])
@pytest.mark.parametrize("rows", [1, 16, 65, 700])
def test_large_matrices(queue: CudaQueue, form: str, rows: int, library: bool,
                        monkeypatch: pytest.MonkeyPatch) -> None:
    if not library:
        monkeypatch.setattr(queue, "libraries", frozenset())
    monkeypatch.setattr(gemm, "SCRATCH", 4 << 20)
    w, dense = placed(queue, form, 3001, 1536)
    x = activations(rows, 1536, "bfloat16")
    out = logits(queue, queue.put(x), (w,))
    rounded = dense.astype(inputs.DTYPES["bfloat16"]).astype(np.float64)
    wanted = x.astype(np.float64) @ rounded.T
    got = queue.download(out).result()
    assert got.dtype == np.float32 and np.abs(got - wanted).max() < 2e-5 * np.abs(wanted).max()
