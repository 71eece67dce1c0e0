"""The cuBLASLt product without a GPU: how a row-major product is put to a column-major library, what is refused."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from blackwell_infer.device.dry import DryQueue
from blackwell_infer.errors import DeviceError
from blackwell_infer.ops.cuda.gemm_lt import Problem, matmul, supported

BF16 = np.dtype(ml_dtypes.bfloat16)


def test_layouts_describe_the_product_in_column_major() -> None:
    m, n, k, ld = 3, 4, 8, 10
    rng = np.random.default_rng(0)
    memory = {"A": rng.random((n, k)).ravel(), "B": rng.random((m, k)).ravel(), "C": np.zeros(m * ld)}
    views = [np.lib.stride_tricks.as_strided(memory[name], (rows, columns), (8, lead * 8)) for name, (
        _, rows, columns, lead) in zip("ABC", Problem(m, n, k, "float32", "float32", ld, 16).layouts(), strict=True)]
    a, b, c = views
    c[:] = a.T @ b
    expected = memory["B"].reshape(m, k) @ memory["A"].reshape(n, k).T
    assert np.allclose(memory["C"].reshape(m, ld)[:, :n], expected) and not memory["C"].reshape(m, ld)[:, n:].any()


@pytest.mark.parametrize(("shape", "dtype", "answer"), [
    ((17, 5, 64), "bfloat16", True), ((17, 5, 64), "float16", True), ((17, 5, 4), "float32", True),
    ((17, 5, 60), "bfloat16", False), ((17, 5, 6), "float32", False), ((17, 5, 64), "float64", False),
    ((0, 5, 64), "bfloat16", False), ((17, 5, 64), "int8", False),
])
def test_supported_shapes(shape: tuple[int, int, int], dtype: str, answer: bool) -> None:
    assert supported(*shape, np.dtype(dtype)) is answer


def test_a_product_is_one_library_call() -> None:
    q = DryQueue(libraries=frozenset({"cublaslt"}))
    matmul(q, q.empty((5, 64), BF16), q.empty((7, 64), BF16), q.empty((5, 9), np.float32), column=2)
    assert [(t.entry, t.args) for t in q.trace] == [("cublaslt", ("bfloat16[5,64]", "bfloat16[7,64]", "float32[5,9]"))]


@pytest.mark.parametrize(("x", "w", "out", "dtypes", "column"), [
    ((5, 64), (7, 32), (5, 7), "bbb", 0), ((5, 64), (7, 64), (4, 7), "bbb", 0), ((5, 64), (7, 64), (5, 7), "bfb", 0),
    ((5, 64), (7, 64), (5, 7), "bbh", 0), ((5, 60), (7, 60), (5, 7), "bbb", 0), ((5, 64), (7, 64), (5, 7), "bbb", 1),
    ((0, 64), (7, 64), (0, 7), "bbb", 0),
])
def test_misfits_are_refused(x: tuple[int, int], w: tuple[int, int], out: tuple[int, int], dtypes: str,
                             column: int) -> None:
    q = DryQueue(libraries=frozenset({"cublaslt"}))
    kinds: dict[str, Any] = {"b": BF16, "f": np.float32, "h": np.float16}
    arrays = [q.empty(shape, kinds[d]) for shape, d in zip((x, w, out), dtypes, strict=True)]
    with pytest.raises(DeviceError, match="matmul of bfloat16"):
        matmul(q, *arrays, column=column)
    assert q.trace == []


def test_an_unaligned_input_is_refused() -> None:
    q = DryQueue(libraries=frozenset({"cublaslt"}))
    flat = q.empty((64 * 6 + 4,), BF16)
    with pytest.raises(DeviceError, match="16-byte aligned"):
        matmul(q, flat[4:].reshape(6, 64), q.empty((7, 64), BF16), q.empty((6, 7), BF16))
