"""Partitions of a GPU's SMs: right results side by side, each on its own SMs, none waiting for another."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.device.green import capacity, open_partitions
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.errors import DeviceError
from blackwell_infer.kernels.compile import Builder
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.ops.cuda.gemm_lt import matmul

pytestmark = pytest.mark.gpu

SOURCE = """
__device__ unsigned long long nanoseconds() {
    unsigned long long t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}
// ids[b] = the SM that block b ran on, each for at least `time` ns: long enough that all SMs get blocks.
extern "C" __global__ void place(int *ids, unsigned long long time) {
    unsigned long long start = nanoseconds();
    int id;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
    while (nanoseconds() - start < time) {}
    if (threadIdx.x == 0) ids[blockIdx.x] = id;
}
// seen[b] = 1 if *flag became nonzero within `time` ns of the start of block b.
extern "C" __global__ void await_flag(const int *flag, int *seen, unsigned long long time) {
    unsigned long long start = nanoseconds();
    int found = 0;
    while (!found && nanoseconds() - start < time)
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(flag) : "memory");
    if (threadIdx.x == 0) seen[blockIdx.x] = found != 0;
}
extern "C" __global__ void raise_flag(int *flag) {
    asm volatile("st.release.gpu.global.u32 [%0], 1;" :: "l"(flag) : "memory");
}
extern "C" __global__ void add(const float *x, float *y, int n, float a) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = a * x[i] + y[i];
}
"""
PLACE = Kernel("green.cu", "place", (Param("ids", "out", "int32"), Param("time", "u64"))).variant()
AWAIT = Kernel("green.cu", "await_flag", (
    Param("flag", "in", "int32"), Param("seen", "out", "int32"), Param("time", "u64"))).variant()
RAISE = Kernel("green.cu", "raise_flag", (Param("flag", "out", "int32"),)).variant()
ADD = Kernel("green.cu", "add", (
    Param("x", "in", "float32"), Param("y", "inout", "float32"), Param("n", "i32"), Param("a", "f32"))).variant()
ONE = (1, 1, 1)
FULL = (1024, 1, 1)
"""Threads of a block of which an SM holds two at most."""


@pytest.fixture(scope="module")
def main(queue: CudaQueue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CudaQueue]:
    """A queue on all SMs, whose kernels are those above."""
    root: Path = tmp_path_factory.mktemp("ptx")
    (root / "green.cu").write_text(SOURCE)
    try:
        capacity(queue)
    except DeviceError as error:
        pytest.skip(str(error))
    main = CudaQueue(queue.driver.device.device_id, queue.arch, Builder(queue.arch, None, root))
    main.prepare([PLACE, AWAIT, RAISE, ADD])
    yield main
    main.close()


@pytest.fixture(scope="module")
def parts(main: CudaQueue) -> Iterator[tuple[CudaQueue, ...]]:
    """Three partitions of different sizes, the last of them what the others leave."""
    parts = open_partitions(main, (16, 40, None))
    yield parts
    for q in parts:
        q.close()


def place(q: CudaQueue) -> Tensor:
    """Start blocks that keep all SMs of a queue busy; the result names the SM of each."""
    blocks = 32 * q.sm_count
    ids = q.zeros((blocks,), np.int32)
    q.launch(PLACE, (blocks, 1, 1), FULL, ids, 20_000)
    return ids


def test_partitions_share_out_the_sms(main: CudaQueue, parts: tuple[CudaQueue, ...]) -> None:
    assert [q.sm_count for q in parts] == [16, 40, main.sm_count - 56]
    started = [place(q) for q in parts]
    used = [set(q.download(ids).result().tolist()) for q, ids in zip(parts, started, strict=True)]
    assert [len(ids) for ids in used] == [q.sm_count for q in parts]
    assert len(set().union(*used)) == main.sm_count
    assert set(main.download(place(main)).result().tolist()) == set().union(*used)


def test_a_full_partition_does_not_hold_up_another(main: CudaQueue, parts: tuple[CudaQueue, ...]) -> None:
    a, b = parts[:2]
    blocks = 8 * b.sm_count  # four times as many as fit: the later ones start only when the earlier have ended
    flag, spare = main.zeros((1,), np.int32), main.zeros((1,), np.int32)
    seen, few = main.zeros((blocks,), np.int32), main.zeros((1,), np.int32)
    b.launch(AWAIT, ONE, ONE, spare, few, 0)  # loads the code, which may wait for the whole GPU
    a.launch(RAISE, ONE, ONE, spare)
    for q in (main, a, b):
        q.sync()
    b.launch(AWAIT, (blocks, 1, 1), FULL, flag, seen, 1_000_000_000)
    a.launch(RAISE, ONE, ONE, flag)
    assert b.download(seen).result().all(), "the flag was not raised while the other partition was full"


def test_results_are_right_side_by_side(main: CudaQueue, parts: tuple[CudaQueue, ...]) -> None:
    n, rounds = 1 << 20, 50
    host = np.arange(n, dtype=np.float32) % 1024  # so that all sums are exact
    x = main.put(host)
    sums = [main.zeros((n,), np.float32) for _ in parts]
    for q in parts:
        q.follow(main)
    for _ in range(rounds):
        for i, q in enumerate(parts):
            q.launch(ADD, (q.sm_count, 1, 1), (256, 1, 1), x, sums[i], n, float(i + 1))
    for i, (q, y) in enumerate(zip(parts, sums, strict=True)):
        assert np.array_equal(q.download(y).result(), rounds * (i + 1) * host)


def test_a_queue_follows_another(main: CudaQueue, parts: tuple[CudaQueue, ...]) -> None:
    a, b = parts[:2]
    flag, ids = main.zeros((1,), np.int32), main.zeros((64,), np.int32)
    main.sync()
    a.launch(PLACE, ONE, ONE, ids, 0)  # loads the code, and the download takes its memory: both may wait for the GPU
    assert b.download(flag).result().tolist() == [0]
    a.launch(PLACE, ONE, ONE, ids, 50_000_000)
    a.launch(RAISE, ONE, ONE, flag)
    b.follow(a)
    assert b.download(flag).result().tolist() == [1]


def test_library_products_in_a_partition(main: CudaQueue, parts: tuple[CudaQueue, ...]) -> None:
    if "cublaslt" not in main.libraries:
        pytest.skip("cuBLASLt or its bindings are not installed (extra cu13)")
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, np.float32).astype(np.float16) for shape in ((512, 256), (1024, 256)))
    expected = x.astype(np.float64) @ w.astype(np.float64).T
    for q in parts[:2]:
        out = q.empty((512, 1024), np.float32)
        matmul(q, q.put(x), q.put(w), out)
        assert np.abs(q.download(out).result() - expected).max() < 1e-4 * np.abs(expected).max()


def test_closed_partitions_give_sms_and_memory_back(main: CudaQueue) -> None:
    def once() -> int:
        opened = open_partitions(main, (main.sm_count // 2, None))
        for q in opened:
            assert len(set(q.download(place(q)).result().tolist())) == q.sm_count
        for q in opened:
            q.close()
            q.close()
        return main.memory()[0]

    first = [once() for _ in range(4)][-1]
    last = [once() for _ in range(12)][-1]
    assert last >= first - (8 << 20)


def test_more_sms_than_exist(main: CudaQueue) -> None:
    with pytest.raises(DeviceError, match=f"{main.sm_count} exist"):
        open_partitions(main, (main.sm_count, 8))
