"""The cuBLASLt product without a GPU: how a row-major product is put to a column-major library, what is refused."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from blackwell_infer.device.dry import DryQueue
from blackwell_infer.errors import DeviceError
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.ops.cuda.gemm_lt import Problem, descriptors, matmul, matmul_scaled, point_at_scales, supported
from blackwell_infer.quant.format import Quantized, Weight

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


class Recorder:
    """Stands for the library: keeps what its descriptors are given; enumerations are the library's own."""

    def __init__(self) -> None:
        self.module = pytest.importorskip("nvmath.bindings.cublasLt", reason="nvmath-python is not installed")
        self.attributes: dict[str, int] = {}
        self.layouts: list[tuple[str, int, int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def matmul_desc_create(self, compute: int, scale: int) -> int:
        return 7

    def matmul_desc_set_attribute(self, desc: int, name: Any, address: int, nbytes: int) -> None:
        kind = np.ctypeslib.as_ctypes_type(np.dtype(f"i{nbytes}"))
        self.attributes[name.name] = kind.from_address(address).value

    def matrix_layout_create(self, kind: Any, rows: int, columns: int, lead: int) -> int:
        self.layouts.append((kind.name, rows, columns, lead))
        return len(self.layouts)


@pytest.mark.parametrize(("form", "kind", "mode"), [("nvfp4", "CUDA_R_4F_E2M1", "VEC16_UE4M3"),
                                                    ("mxfp8", "CUDA_R_8F_E4M3", "VEC32_UE8M0")])
def test_descriptors_of_a_block_scaled_product(form: str, kind: str, mode: str) -> None:
    lt = Recorder()
    descriptors(lt, Problem(100, 40, 256, form, "float32", 40, 16))
    point_at_scales(lt, 7, 0x1000, 0x2000)
    scale = int(lt.MatmulMatrixScale[mode])
    assert lt.attributes == {"TRANSA": 1, "TRANSB": 0, "A_SCALE_MODE": scale, "B_SCALE_MODE": scale,
                             "A_SCALE_POINTER": 0x2000, "B_SCALE_POINTER": 0x1000}
    assert lt.layouts == [(kind, 256, 40, 256), (kind, 256, 100, 256), ("CUDA_R_32F", 40, 100, 40)]


def scaled(q: DryQueue, form: str, m: int, n: int, k: int) -> tuple[Quantized, Weight]:
    groups, width = k // (16 if form == "nvfp4" else 32), k // 2 if form == "nvfp4" else k
    one, many = (((q.empty((size,), np.float32),) if form == "nvfp4" else ()) for size in (1, n))
    tiles = [q.empty((-(-rows // 128) * -(-groups // 4) * 512,), np.uint8) for rows in (m, n)]
    return (Quantized(form, (m, k), (q.empty((m, width), np.uint8), tiles[0], *one)),
            Weight(f"{form}_tiled", (n, k), (q.empty((n, width), np.uint8), tiles[1], *many)))


@pytest.mark.parametrize(("form", "arch", "rows", "expected"), [
    ("nvfp4", "sm_120f", 65, ["cublaslt", "scale_sums"]), ("nvfp4", "sm_120f", 64, ["nvfp4_gemm"]),
    ("nvfp4", "sm_120f", 16, ["nvfp4_gemm_16"]), ("nvfp4", "sm_90a", 65, ["nvfp4_gemm"]),
    ("nvfp4", "sm_90a", 16, ["nvfp4_gemm"]), ("mxfp8", "sm_120f", 65, ["fp8_gemm"]),
    ("mxfp8", "sm_100f", 65, ["cublaslt", "scale_sums"]), ("mxfp8", "sm_100f", 1, ["fp8_gemm"]),
])
def test_the_target_and_the_rows_choose_the_product(form: str, arch: str, rows: int, expected: list[str]) -> None:
    q = DryQueue(arch, libraries=frozenset({"cublaslt"}))
    x, w = scaled(q, form, rows, 40, 256)
    y = CudaOps(q).linear_quantized(x, (w, w), "bfloat16", q.empty((80,), np.float32), q.empty((rows, 80), BF16))
    assert y.shape == (rows, 80) and [t.entry for t in q.trace] == 2 * expected


def test_block_scaled_misfits_are_refused() -> None:
    q = DryQueue("sm_120f", libraries=frozenset({"cublaslt"}))
    x, w = scaled(q, "nvfp4", 100, 40, 256)
    with pytest.raises(DeviceError, match="do not fit together"):
        matmul_scaled(q, x, w, q.empty((100, 41), np.float32))
    with pytest.raises(DeviceError, match="not a product of the library on sm_120f"):
        matmul_scaled(q, *scaled(q, "mxfp8", 100, 40, 256), q.empty((100, 40), np.float32))
    assert q.trace == []
