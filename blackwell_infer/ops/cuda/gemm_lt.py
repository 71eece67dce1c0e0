"""Large matrix products through cuBLASLt: the fast path of prefill, never a requirement.

cuBLASLt is column-major, where a row-major [R, C] array is a C x R matrix of leading dimension C. So
out[M, N] = x[M, K] w[N, K]^T is computed as out^T = op(w) x^T with op = transpose ("TN": K contiguous for both).
Products are accumulated in float32 (float32 inputs are not rounded to TF32) and rounded once.
Block-scaled products (NVFP4, MXFP8) take their scales in tiles (quant/tiled.py) and leave float32 sums.
"""
from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.device.check import describe
from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.errors import DeviceError
from blackwell_infer.kernels.cost import Cost, elements, size_of
from blackwell_infer.quant.format import Quantized, Weight
from blackwell_infer.quant.tiled import TILED
from blackwell_infer.types import Array

LIBRARY = "cublaslt"
ALIGN = 16
"""Bytes to which inputs must be aligned, rows included: the widest load, below which cuBLASLt falls off a cliff."""
TYPES = {"bfloat16": "CUDA_R_16BF", "float16": "CUDA_R_16F", "float32": "CUDA_R_32F", "nvfp4": "CUDA_R_4F_E2M1",
         "mxfp8": "CUDA_R_8F_E4M3"}
SCALE_MODES = {"nvfp4": "VEC16_UE4M3", "mxfp8": "VEC32_UE8M0"}
BITS = {"nvfp4": 4, "mxfp8": 8}
SCALED = {("nvfp4", "sm_100f"), ("nvfp4", "sm_120f"), ("mxfp8", "sm_100f")}
"""Formats and targets of block-scaled products. MXFP8 on sm_120 is documented for compute capability 10 alone."""
KEPT_PLANS = 1024


class Problem(msgspec.Struct, frozen=True):
    """One shape of product. `dtype` is an array type or a block-scaled format; `ld` is the row length of the array that
    the output lies in, `align_out` in bytes."""

    m: int
    n: int
    k: int
    dtype: str
    out_dtype: str
    ld: int
    align_out: int

    def layouts(self) -> tuple[tuple[str, int, int, int], ...]:
        """(type, rows, columns, leading dimension), column-major, of the library's A (w), B (x) and C = D (out)."""
        return ((self.dtype, self.k, self.n, self.k), (self.dtype, self.k, self.m, self.k),
                (self.out_dtype, self.n, self.m, self.ld))


class Plan(msgspec.Struct, frozen=True):
    """Handles of a problem's descriptors, and the chosen algorithm (an array that the library reads in place)."""

    desc: int
    a: int
    b: int
    c: int
    algorithm: np.ndarray[Any, Any]


class Plans:
    """The library's handle and the plans made so far; owned by a queue, which closes it."""

    def __init__(self) -> None:
        from nvmath.bindings import cublasLt

        self._lt = cublasLt
        self._handle = cublasLt.create()
        self._plans: dict[Problem, Plan] = {}
        self._scales = np.array([0, 1], np.float32)
        self._finalizer = weakref.finalize(self, cublasLt.destroy, self._handle)
        self._finalizer.atexit = False

    def run(self, problem: Problem, x: int, w: int, out: int, accumulate: bool, stream: int, workspace: int,
            nbytes: int, scales: tuple[int, int] | None = None) -> None:
        """Queue the product of the arrays at these addresses (`scales`: of x and w). DeviceError if the library has no
        algorithm or fails."""
        lt = self._lt
        try:
            plan = self._plans.get(problem)
            if plan is None:
                plan = self._make(problem, nbytes, scales)
            if scales is not None:
                point_at_scales(lt, plan.desc, *scales)
            zero = self._scales.ctypes.data
            lt.matmul(self._handle, plan.desc, zero + 4, w, plan.a, x, plan.b, zero + 4 if accumulate else zero, out,
                      plan.c, out, plan.c, plan.algorithm.ctypes.data, workspace, nbytes, stream)
        except lt.cuBLASLtError as error:
            raise DeviceError(f"cuBLASLt failed on {problem}: {error}") from error

    def close(self) -> None:
        """Destroy all plans and the handle. Idempotent."""
        self._forget()
        self._finalizer()

    def _make(self, problem: Problem, nbytes: int, scales: tuple[int, int] | None) -> Plan:
        if len(self._plans) >= KEPT_PLANS:
            self._forget()
        desc, a, b, c = descriptors(self._lt, problem)
        if scales is not None:
            point_at_scales(self._lt, desc, *scales)
        preference = preferences(self._lt, problem, nbytes)
        found = np.zeros(1, self._lt.matmul_heuristic_result_dtype)
        count = np.zeros(1, np.int32)
        try:
            self._lt.matmul_algo_get_heuristic(self._handle, desc, a, b, c, c, preference, 1, found.ctypes.data,
                                               count.ctypes.data)
        finally:
            self._lt.matmul_preference_destroy(preference)
        if count[0] == 0:
            raise DeviceError(f"cuBLASLt has no algorithm for {problem}")
        plan = self._plans[problem] = Plan(desc, a, b, c, found)
        return plan

    def _forget(self) -> None:
        for plan in self._plans.values():
            self._lt.matmul_desc_destroy(plan.desc)
            for layout in (plan.a, plan.b, plan.c):
                self._lt.matrix_layout_destroy(layout)
        self._plans.clear()


def descriptors(lt: Any, problem: Problem) -> tuple[int, int, int, int]:
    """Handles of the operation and of the layouts of A, B and C. Needs the library, but no GPU."""
    from nvmath import CudaDataType
    from nvmath.bindings import cublas

    desc = lt.matmul_desc_create(cublas.ComputeType.COMPUTE_32F, CudaDataType.CUDA_R_32F)
    names = lt.MatmulDescAttribute
    set_attribute(lt, desc, names.TRANSA, cublas.Operation.T)
    set_attribute(lt, desc, names.TRANSB, cublas.Operation.N)
    if problem.dtype in SCALE_MODES:
        mode = lt.MatmulMatrixScale[SCALE_MODES[problem.dtype]]
        set_attribute(lt, desc, names.A_SCALE_MODE, mode)
        set_attribute(lt, desc, names.B_SCALE_MODE, mode)
    a, b, c = (lt.matrix_layout_create(CudaDataType[TYPES[dtype]], rows, columns, ld)
               for dtype, rows, columns, ld in problem.layouts())
    return desc, a, b, c


def set_attribute(lt: Any, desc: int, name: Any, value: int) -> None:
    """Set one number of an operation."""
    box = np.full(1, value, lt.get_matmul_desc_attribute_dtype(name))
    lt.matmul_desc_set_attribute(desc, name, box.ctypes.data, box.nbytes)


def point_at_scales(lt: Any, desc: int, x: int, w: int) -> None:
    """Give an operation the addresses of the scales of x (its B) and of w (its A)."""
    set_attribute(lt, desc, lt.MatmulDescAttribute.A_SCALE_POINTER, w)
    set_attribute(lt, desc, lt.MatmulDescAttribute.B_SCALE_POINTER, x)


def preferences(lt: Any, problem: Problem, nbytes: int) -> int:
    """Handle of what the search may assume: workspace bytes and the alignment of every address."""
    names = lt.MatmulPreferenceAttribute
    preference: int = lt.matmul_preference_create()
    for name, number in ((names.MAX_WORKSPACE_BYTES, nbytes), (names.MIN_ALIGNMENT_A_BYTES, ALIGN),
                         (names.MIN_ALIGNMENT_B_BYTES, ALIGN), (names.MIN_ALIGNMENT_C_BYTES, problem.align_out),
                         (names.MIN_ALIGNMENT_D_BYTES, problem.align_out)):
        value = np.full(1, number, lt.get_matmul_preference_attribute_dtype(name))
        lt.matmul_preference_set_attribute(preference, name, value.ctypes.data, value.nbytes)
    return preference


def supported(m: int, n: int, k: int, dtype: np.dtype[Any]) -> bool:
    """Whether `matmul` takes this shape: a known type, nothing empty, rows of K elements a multiple of 16 bytes."""
    return min(m, n, k) > 0 and dtype.name in TYPES and k * dtype.itemsize % ALIGN == 0


def matmul(q: Queue, x: Array, w: Array, out: Array, accumulate: bool = False, column: int = 0) -> None:
    """out[:, column:column + N] = x [M, K] times w [N, K] transposed, plus what `out` [M, L] held if `accumulate`.

    x and w have one type (bfloat16, float16 or float32); out has that type or float32. DeviceError: shapes or types
    that do not fit together, or inputs that `supported` refuses or whose address is not 16-byte aligned.
    """
    if not (isinstance(x, Tensor) and isinstance(w, Tensor) and isinstance(out, Tensor)):
        raise DeviceError(f"matmul needs device arrays, not {describe(x)}, {describe(w)}, {describe(out)}")
    what = f"matmul of {describe(x)} by {describe(w)} into {describe(out)} at column {column}"
    (m, k), n, ld = x.shape, w.shape[0], out.shape[1]
    if w.shape != (n, k) or w.dtype != x.dtype or out.shape[0] != m or not 0 <= column <= ld - n:
        raise DeviceError(f"{what}: shapes or types do not fit together")
    if out.dtype != x.dtype and out.dtype.name != "float32":
        raise DeviceError(f"{what}: the output has the inputs' type or float32")
    if not supported(m, n, k, x.dtype) or x.ptr % ALIGN or w.ptr % ALIGN:
        raise DeviceError(f"{what}: inputs are not 16-byte aligned, empty, or of an unknown type")
    item = out.dtype.itemsize
    left, right, address = x.ptr, w.ptr, out.ptr + column * item  # numbers, so that a recorded call holds no memory
    even = address % ALIGN == 0 and ld * item % ALIGN == 0
    problem = Problem(m, n, k, x.dtype.name, out.dtype.name, ld, ALIGN if even else item)

    def call(stream: int, workspace: int, nbytes: int) -> None:
        q.owned(Plans).run(problem, left, right, address, accumulate, stream, workspace, nbytes)

    q.library(LIBRARY, call, (x, w), (out,))


def library_cost(reads: Sequence[Array], writes: Sequence[Array]) -> Cost:
    """What a product moves and computes, from the arrays of its call: x and w, or codes and scales of both."""
    x, w, (out,) = reads[0], reads[len(reads) // 2], writes
    m, n, k = x.shape[0], w.shape[0], w.shape[1]
    if len(reads) > 2 and size_of(w) < 16 * size_of(reads[-1]):  # NVFP4: 8 bytes of codes a scale; MXFP8: 32
        k *= 2
    return Cost(sum(map(size_of, reads)) + m * n * size_of(out) // elements(out), 2 * m * n * k)


def supported_scaled(q: Queue, form: str, m: int, n: int, k: int) -> bool:
    """Whether `matmul_scaled` takes a shape of this format on the queue's target: rows that fill 16-byte units."""
    return LIBRARY in q.libraries and (form, q.arch) in SCALED and min(m, n) > 0 and k * BITS[form] // 8 % ALIGN == 0


def matmul_scaled(q: Queue, x: Quantized, w: Weight, out: Array) -> None:
    """out [M, N] float32 = codes and block scales of x [M, K] times those of w [N, K] transposed; no other factors.

    x is "nvfp4" or "mxfp8" and w of the same in tiles. DeviceError: shapes or formats that do not fit together, or that
    `supported_scaled` refuses.
    """
    (m, k), n = x.shape, w.shape[0]
    arrays = (*x.parts[:2], *w.parts[:2], out)
    what = f"matmul of {x.format} [{m}, {k}] by {w.format} {list(w.shape)} into {describe(out)}"
    if not all(isinstance(a, Tensor) and a.ptr % ALIGN == 0 for a in arrays):
        raise DeviceError(f"{what}: needs device arrays that are 16-byte aligned")
    if w.format != TILED.get(x.format) or w.shape != (n, k) or out.shape != (m, n) or out.dtype != np.float32:
        raise DeviceError(f"{what}: shapes or types do not fit together")
    if not supported_scaled(q, x.format, m, n, k):
        raise DeviceError(f"{what}: not a product of the library on {q.arch}")
    codes_x, scales_x, codes_w, scales_w, target = (a.ptr for a in arrays if isinstance(a, Tensor))
    problem = Problem(m, n, k, x.format, "float32", n, ALIGN if n % 4 == 0 else 4)

    def call(stream: int, workspace: int, nbytes: int) -> None:
        q.owned(Plans).run(problem, codes_x, codes_w, target, False, stream, workspace, nbytes, (scales_x, scales_w))

    q.library(LIBRARY, call, arrays[:4], (out,))
