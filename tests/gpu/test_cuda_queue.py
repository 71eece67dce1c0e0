"""The CUDA queue on a GPU: copies, the arena, launches, programmatic launches, errors, and cuBLASLt."""
from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.errors import DeviceError, KernelError, OutOfMemoryError
from blackwell_infer.kernels.compile import Builder
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.ops.cuda.gemm_lt import matmul

pytestmark = pytest.mark.gpu

SOURCE = """
extern "C" __global__ void affine(const float *x, float *y, int n, float a, long long add, unsigned long long scale) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
    if (i < n) y[i] = (a * x[i] + (float)add) * (float)scale;
}
extern "C" __global__ void through_shared(const int *x, int *y, int n) {
    extern __shared__ int s[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) s[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = s[n - 1 - i] + BY;
}
"""
AFFINE = Kernel("test.cu", "affine", (
    Param("x", "in", "float32"), Param("y", "out", "float32"), Param("n", "i32"), Param("a", "f32"),
    Param("add", "i64"), Param("scale", "u64")), {"BY": (1, 2)}).variant(BY=1)
REVERSE = Kernel("test.cu", "through_shared", (
    Param("x", "in", "int32"), Param("y", "out", "int32"), Param("n", "i32")), {"BY": (1, 2)})
ONE = (1, 1, 1)


@pytest.fixture(scope="module")
def own(queue: CudaQueue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CudaQueue]:
    """A second queue on the same GPU, whose kernels are those above."""
    root: Path = tmp_path_factory.mktemp("ptx")
    (root / "test.cu").write_text(SOURCE)
    own = CudaQueue(0, queue.arch, Builder(queue.arch, None, root))
    yield own
    own.close()


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 7), (3, 1 << 20), (40 << 20,)])
def test_a_copy_comes_back(queue: CudaQueue, shape: tuple[int, ...], dtype: Any) -> None:
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    host = np.random.default_rng(n).integers(0, 256, n, np.uint8).view(dtype).reshape(shape)
    back = queue.download(queue.put(host)).result()
    assert back.dtype == host.dtype and back.shape == host.shape and back.tobytes() == host.tobytes()


def test_strided_arrays_and_parts(queue: CudaQueue) -> None:
    host = np.arange(48 << 20, dtype=np.int32).reshape(-1, 1024).T
    x = queue.put(host)
    assert np.array_equal(queue.download(x).result(), host)
    queue.upload(x[3], np.zeros(48 << 10, np.int32))
    assert not queue.download(x[3]).result().any() and np.array_equal(queue.download(x[4]).result(), host[4])


def test_downloads_keep_stream_order(own: CudaQueue) -> None:
    x, pending = own.zeros((1 << 20,), np.float32), []
    for i in range(8):
        own.launch(AFFINE, (4096, 1, 1), (256, 1, 1), x, x, 1 << 20, 1.0, 1, 1)
        pending.append(own.download(x[i:i + 5]))
    assert [p.result().tolist() for p in pending] == [[i + 1] * 5 for i in range(8)]


def test_uploads_keep_stream_order(queue: CudaQueue) -> None:
    with queue.step():
        arrays = [queue.put(np.full(1 + 31 * i, i, np.int32)) for i in range(3000)]
        pending = [queue.download(a) for a in arrays[::100]]
    assert [p.result().tolist() for p in pending] == [[i] * (1 + 31 * i) for i in range(0, 3000, 100)]


def test_steps_reuse_the_arena(queue: CudaQueue) -> None:
    def step() -> list[int]:
        with queue.step():
            return [queue.empty((n,), np.uint8).ptr for n in (1, 1000, 40 << 20, 3)]

    first = step()
    free = queue.memory()[0]
    assert all(step() == first for _ in range(3)) and queue.memory()[0] == free


def test_arguments_arrive(own: CudaQueue) -> None:
    x = np.linspace(-3, 3, 1000, dtype=np.float32)
    y = own.zeros((1000,), np.float32)
    own.launch(AFFINE, (4, 1, 1), (256, 1, 1), own.put(x), y, 999, np.float32(0.5).item(), -(2**40), 2**33)
    expected = (np.float32(0.5) * x + np.float32(-(2**40))) * np.float32(2**33)
    got = own.download(y).result()
    assert np.array_equal(got[:999], expected[:999]) and got[999] == 0


def test_programmatic_launches_wait_for_each_other(own: CudaQueue) -> None:
    n = 1 << 20
    x, y = own.zeros((n,), np.float32), own.zeros((n,), np.float32)
    for _ in range(100):
        own.launch(AFFINE, (n // 256, 1, 1), (256, 1, 1), x, y, n, 1.0, 1, 1, pdl=True)
        own.launch(AFFINE, (n // 256, 1, 1), (256, 1, 1), y, x, n, 1.0, 1, 1, pdl=True)
    assert (own.download(x).result() == 200).all()


def test_shared_memory_up_to_the_limit(own: CudaQueue) -> None:
    for n in (12 << 10, 24 << 10, 4):
        x, y = own.put(np.arange(n, dtype=np.int32)), own.zeros((n,), np.int32)
        for by in (1, 2):
            own.launch(REVERSE.variant(BY=by), ONE, (256, 1, 1), x, y, n, smem=4 * n)
            assert np.array_equal(own.download(y).result(), np.arange(n)[::-1] + by)


def test_another_thread_may_call(own: CudaQueue) -> None:
    found: list[list[float]] = []

    def work() -> None:
        x = own.put(np.ones(4, np.float32))
        own.launch(AFFINE, ONE, (32, 1, 1), x, x, 4, 3.0, 0, 1)
        found.append(own.download(x).result().tolist())

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert found == [[3.0] * 4]


def test_time_is_measured_on_the_device(own: CudaQueue) -> None:
    x = own.zeros((1 << 26,), np.float32)

    def work(times: int) -> None:
        for _ in range(times):
            own.launch(AFFINE, (1 << 18, 1, 1), (256, 1, 1), x, x, 1 << 26, 1.0, 1, 1)

    work(1)
    once, often = own.elapsed_ms(lambda: work(1)), own.elapsed_ms(lambda: work(20))
    assert once > 0 and 5 * once < often < 80 * once


def test_memory_runs_out_with_numbers_and_comes_back(queue: CudaQueue) -> None:
    gc.collect()
    free, total = queue.memory()
    with pytest.raises(OutOfMemoryError, match=f"needs {2 * total} bytes"):
        queue.zeros((2 * total,), np.uint8)
    x = queue.zeros((1 << 30,), np.uint8)
    slack = 64 << 20  # the driver gives back what other tests closed whenever it likes
    assert queue.memory()[0] <= free - (1 << 30) + slack
    assert not queue.download(x[-8:]).result().any()
    del x
    assert queue.memory()[0] >= free - slack


def test_faults_are_typed(own: CudaQueue) -> None:
    with pytest.raises(KernelError, match="does not compile"):
        own.launch(Kernel("test.cu", "through_shared", ()).variant(), ONE, ONE)
    with pytest.raises(DeviceError, match=r"argument 1 \(y\) must be a device array of float32"):
        own.launch(AFFINE, ONE, ONE, own.zeros((1,), np.float32), own.zeros((1,), np.int32), 1, 1.0, 1, 1)


def product(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x.astype(np.float64) @ w.astype(np.float64).T


@pytest.mark.parametrize(("m", "n", "k"), [(17, 512, 64), (1, 8, 8), (100, 77, 264), (300, 4096, 1024), (33, 2, 32)])
@pytest.mark.parametrize(("dtype", "out_dtype", "tolerance"), [
    ("bfloat16", "bfloat16", 8e-3), ("bfloat16", "float32", 1e-5), ("float16", "float16", 1e-3),
    ("float16", "float32", 1e-5), ("float32", "float32", 1e-5),
])
def test_library_product(queue: CudaQueue, m: int, n: int, k: int, dtype: str, out_dtype: str,
                         tolerance: float) -> None:
    if "cublaslt" not in queue.libraries:
        pytest.skip("cuBLASLt or its bindings are not installed (extra cu13)")
    rng = np.random.default_rng(m)
    x, w = (rng.standard_normal(shape, np.float32).astype(dtype) for shape in ((m, k), (n, k)))
    expected = product(x, w)
    scale = np.abs(expected).max()

    def error(out: Tensor, wanted: np.ndarray[Any, Any]) -> float:
        return float(np.abs(queue.download(out).result().astype(np.float64) - wanted).max() / scale)

    device_x, device_w = queue.put(x), queue.put(w)
    out = queue.empty((m, n), out_dtype)
    for _ in range(2):
        matmul(queue, device_x, device_w, out)
        assert error(out, expected) < tolerance
    matmul(queue, device_x, device_w, out, accumulate=True)
    assert error(out, 2 * expected) < 3 * tolerance
    wide = queue.zeros((m, n + 5), out_dtype)
    matmul(queue, device_x, device_w, wide, column=3)
    assert error(wide, np.pad(expected, ((0, 0), (3, 2)))) < tolerance


def test_library_refuses_unaligned_inputs(queue: CudaQueue) -> None:
    x = queue.zeros((20, 60), ml_dtypes.bfloat16)
    with pytest.raises(DeviceError, match="16-byte aligned"):
        matmul(queue, x, x, queue.zeros((20, 20), ml_dtypes.bfloat16))
