"""The CUDA queue over a pretended driver: every call that it makes, without a GPU. Each test is its own process."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD = '''
import ctypes, gc, threading
from pathlib import Path
import numpy as np
from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.errors import DeviceError, OutOfMemoryError
from blackwell_infer.kernels.compile import Builder
from blackwell_infer.kernels.kernel import Kernel, Param
SCALE = Kernel("scale.cu", "scale", (
    Param("x", "in", "float32"), Param("y", "out", "float32"), Param("n", "i32"), Param("a", "f32"))).variant()
ONE = (1, 1, 1)
fake = ctypes.CDLL("libcuda.so.1")
fake.fake_used.restype = ctypes.c_size_t
q = CudaQueue(0, "sm_90a", Builder("sm_90a", None, Path(SOURCES)))
def raises(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"{kind.__name__} was not raised")
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the pretended driver")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("fake_driver.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", folder / "libcuda.so.1", source, "-ldl"], check=True)
    (folder / "scale.cu").write_text(
        'extern "C" __global__ void scale(const float *x, float *y, int n, float a) { if (threadIdx.x < n) y[0] = a; }')
    return folder


@pytest.fixture
def run(folder: Path) -> Callable[..., str]:
    def run(code: str, head: str = HEAD, **environment: str) -> str:
        libraries = os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH"))))
        env = {**os.environ, "LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(ROOT), **environment}
        script = f"SOURCES = {str(folder)!r}\n{head}{code}"
        done = subprocess.run([sys.executable, "-W", "error", "-c", script], env=env, capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout
    return run


def test_launch_copies_and_timing(run: Callable[..., str]) -> None:
    run('''
x, y = q.put(np.arange(5, dtype=np.float32)), q.zeros((5,), np.float32)
assert q.download(y).result().tolist() == [0] * 5
q.launch(SCALE, ONE, (32, 1, 1), x, y, 5, 0.5, smem=100 * 1024, pdl=True)
assert q.download(y).result().tolist() == [0, 0.5, 1, 1.5, 2]
assert fake.fake_last_pdl() == 1 and fake.fake_last_shared() == 100 * 1024
q.launch(SCALE, ONE, (32, 1, 1), x, y, 4, -1)
assert q.download(y).result().tolist() == [0, -1, -2, -3, 2] and fake.fake_last_pdl() == 0
assert q.elapsed_ms(lambda: q.launch(SCALE, ONE, ONE, x, y, 1, 0)) == 1.25 and fake.fake_launches() == 3
text = raises(DeviceError, lambda: q.launch(SCALE, ONE, ONE, 1, y, 1, 0))
assert "argument 0 (x) must be a device array of float32" in text
assert "65535" in raises(DeviceError, lambda: q.launch(SCALE, (1, 1, 1 << 17), ONE, x, y, 1, 0))
assert fake.fake_launches() == 3 and q.sm_count == 132
assert q.bandwidth() == 2 * 1000 * 3 * 64 // 8, "two transfers in each of 3000 cycles of 64 bits"
''')


def test_a_fetch_goes_beside_what_runs_and_before_what_follows(run: Callable[..., str]) -> None:
    run('''
x, y = q.put(np.arange(5, dtype=np.float32)), q.put(np.arange(300, dtype=np.int16).reshape(3, 100))
pinned, waits = fake.fake_pinned(), fake.fake_waits()
fetch = q.fetch([x, y[1], q.empty((0,), np.float32)])
assert fake.fake_waits() == waits + 1, "what is queued later waits for the copies"
assert fetch.ready
a, b, c = fetch.result()
assert a.tolist() == [0, 1, 2, 3, 4] and a.dtype == np.float32 and b.tolist() == list(range(100, 200)) and c.size == 0
assert fake.fake_pinned() == pinned + 1
del fetch, a, c
gc.collect()
other = q.fetch([x]).result()
assert fake.fake_pinned() == pinned + 2 and b[0] == 100, "b still lies in the first block"
del b, other
gc.collect()
kept = [q.fetch([x]).result()[0] for _ in range(2)]
assert fake.fake_pinned() == pinned + 2, "blocks are used again"
assert kept[1].tolist() == [0, 1, 2, 3, 4]
assert "device arrays" in raises(DeviceError, lambda: q.fetch([np.zeros(3)]))
q.close()
assert kept[0].tolist() == [0, 1, 2, 3, 4], "arrays outlive the queue"
''')


def test_many_arrays_go_up_end_to_end(run: Callable[..., str]) -> None:
    """Of every size, also across the page-locked slots of both kinds, in turns, and some that are not contiguous."""
    run('''
rng = np.random.default_rng(0)
for sizes in ([0, 3, 0, 70, 1], rng.integers(1, 9000, 400), rng.integers(1, 60_000, 40), [17] * 50,
              [5 << 20, 61 << 20, 9, 4 << 20, 70 << 20], [], [1 << 20], [64 << 20, 1]):
    arrays = [rng.integers(0, 256, 2 * n, np.uint8)[:: 2 if i % 5 == 2 else 1][:n] for i, n in enumerate(sizes)]
    whole = np.concatenate([np.zeros(0, np.uint8), *arrays])
    x = q.zeros((len(whole) + 2,), np.uint8)
    q.upload(x[1:-1] if len(whole) else x[:0], *arrays)
    if len(whole):
        got = q.download(x).result()
        assert got[0] == got[-1] == 0 and (got[1:-1] == whole).all(), sizes
x = q.zeros((4, 2), np.float32)
q.upload(x, np.ones((3, 2), np.float32), np.full((1, 2), 5, np.float32))
assert q.download(x).result().tolist() == [[1, 1]] * 3 + [[5, 5]]
assert "float32[3, 2] and 1 more into float32[4,2]" in raises(
    DeviceError, lambda: q.upload(x, np.ones((3, 2), np.float32), np.ones((1, 2))))
assert "cannot upload nothing" in raises(DeviceError, lambda: q.upload(x))
''')


def test_memory_is_freed_with_its_last_tensor(run: Callable[..., str]) -> None:
    run('''
free, total = q.memory()
assert free == total == 1 << 30
x = q.zeros((1 << 20,), np.float32)
part = x[10:20].reshape(5, 2)
del x
gc.collect()
assert q.memory()[0] == free - (4 << 20)
def drop():
    global part
    del part
worker = threading.Thread(target=drop)
worker.start(); worker.join()
gc.collect()
assert q.memory()[0] == free
text = raises(OutOfMemoryError, lambda: q.zeros((3 << 28,), np.float32))
assert f"needs {3 << 30} bytes" in text and f"{free} bytes" in text and "1024.0 MiB" in text, text
q.close(); q.close()
''')


def test_steps_reuse_the_arena(run: Callable[..., str]) -> None:
    run('''
def step():
    with q.step():
        a = q.put(np.full(300, 7, np.int32))
        b, c = q.empty((9, 0), np.float32), q.empty((1, 65), np.float16)
        return [t.ptr for t in (a, b, c)], q.download(a)
first, pending = step()
used = fake.fake_used()
second, _ = step()
assert first == second and used == fake.fake_used() and all(p % 256 == 0 for p in first)
assert (pending.result() == 7).all() and pending.result() is pending.result()
assert q.arena.peak == 1280 + 256 + 256
with q.step():
    assert "outside the arena" in raises(DeviceError, lambda: q.zeros((1,), np.int8))
    assert "a step inside" in raises(DeviceError, lambda: q.step().__enter__())
''')


def test_large_and_strided_arrays_survive_the_staging(run: Callable[..., str]) -> None:
    run('''
import ml_dtypes
from blackwell_infer.device import staging
noise = np.random.default_rng(0).integers(0, 256, 150 << 20, dtype=np.uint8)
for host in (noise, noise[:5], noise[: 70 << 20].reshape(-1, 1024).T, noise[:100].view(ml_dtypes.bfloat16), noise[:0],
             np.float32(3.5).reshape(())):
    back = q.download(q.put(host)).result()
    assert back.dtype == host.dtype and back.shape == host.shape and back.tobytes() == host.tobytes()
assert fake.fake_pinned() <= 4 + 3, "pinned memory is used again"
x = q.zeros((4,), np.float32)
q.upload(x[1:3], np.array([1, 2], np.float32))
assert q.download(x).result().tolist() == [0, 1, 2, 0]
assert "cannot upload" in raises(DeviceError, lambda: q.upload(x, np.zeros(3, np.float32)))
assert "cannot upload" in raises(DeviceError, lambda: q.upload(x, np.zeros(4)))
before = fake.fake_pinned()
for i in range(50):
    q.download(x)
gc.collect()
assert fake.fake_pinned() <= before + 1, "dropped downloads give their memory back"
''')


def test_a_captured_step_runs_again_with_new_data(run: Callable[..., str]) -> None:
    run('''
x, y = q.put(np.arange(3, dtype=np.float32)), q.zeros((3,), np.float32)
def work():
    half = q.empty((3,), np.float32)
    q.launch(SCALE, ONE, ONE, x, half, 3, 0.5, pdl=True)
    q.launch(SCALE, ONE, ONE, half, y, 3, 10, pdl=True)
with q.step():
    work()
graph = q.capture(work)
assert graph.nbytes == 0 and fake.fake_live_graphs() == 1
q.upload(x, np.full(3, 4, np.float32))
assert q.download(y).result().tolist() == [0, 5, 10], "a capture runs nothing"
graph.run()
assert q.download(y).result().tolist() == [20] * 3
assert "inside a captured step" in raises(DeviceError, lambda: q.capture(lambda: q.put(np.zeros(3))))
assert "inside a captured step" in raises(DeviceError, lambda: q.capture(lambda: q.download(x)))
raises(ZeroDivisionError, lambda: q.capture(lambda: 1 / 0))
assert fake.fake_live_graphs() == 1
with q.step():
    assert "a step inside" in raises(DeviceError, graph.run)
q.close(); q.close()
assert fake.fake_live_graphs() == 0
''')
    run('''
assert "a CUDA graph does not fit" in raises(OutOfMemoryError, lambda: q.capture(lambda: None))
assert fake.fake_live_graphs() == 0
''', FAKE_DRIVER_GRAPHS="0")


def test_any_thread_may_call(run: Callable[..., str]) -> None:
    run('''
found = []
def work():
    x = q.put(np.ones(4, np.float32))
    q.launch(SCALE, ONE, ONE, x, x, 4, 3)
    found.append(q.download(x).result().tolist())
worker = threading.Thread(target=work)
worker.start(); worker.join()
assert found == [[3] * 4]
''')


def test_libraries_get_stream_and_workspace(run: Callable[..., str]) -> None:
    said = run('''
class Plans:
    def close(self): print("closed")
q.libraries = frozenset({"cublaslt"})
seen = []
q.library("cublaslt", lambda *a: seen.append(a), (), ())
assert seen[0][0] == int(q.stream.handle) and seen[0][1] and seen[0][2] == 32 << 20
assert "not installed" in raises(DeviceError, lambda: q.library("cudnn", None, (), ()))
assert q.owned(Plans) is q.owned(Plans)
q.close()
''')
    assert said == "closed\n"


def test_open_and_info(run: Callable[..., str]) -> None:
    code = '''
from blackwell_infer.device.info import list_devices
from blackwell_infer.device.open import open_queue
from blackwell_infer.errors import DeviceError
found = list_devices()
print(found.driver, found.reason, [(d.name, d.arch, d.free_bytes, d.supported) for d in found.devices])
for name in ("cuda", "cuda:0", "cuda:7", "cuda:x", "gpu"):
    try:
        print(open_queue(name).arch)
    except DeviceError as error:
        print(error)
'''
    lines = run(code, "").splitlines()
    assert lines[0] == "(13, 0)  [('Fake GPU', 'sm_90a', 1073741824, True)]"
    assert lines[1:3] == ["sm_90a", "sm_90a"]
    assert lines[3] == "device cuda:7 does not exist; found cuda:0 Fake GPU (sm_90a)"
    assert lines[4] == "device 'cuda:x' is not a GPU: write cuda or cuda:N" and "'gpu' is not a GPU" in lines[5]
    assert "the driver speaks CUDA 12.8, 13.0 is needed" in run(code, "", FAKE_DRIVER_VERSION="12080")
    assert "Fake GPU is sm_80; kernels exist for sm_90a" in run(code, "", FAKE_DRIVER_MAJOR="8")
    assert "the NVIDIA driver shows no GPU" in run(code, "", FAKE_DRIVER_DEVICES="0")


def test_library_descriptors_hold_the_problem(run: Callable[..., str]) -> None:
    said = run('''
from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
try:
    load_nvidia_dynamic_lib("cublasLt")
    from nvmath.bindings import cublasLt as lt
except (DynamicLibNotFoundError, ImportError):
    print("absent")
    raise SystemExit
import numpy as np
from nvmath import CudaDataType
from blackwell_infer.ops.cuda.gemm_lt import Problem, descriptors, preferences

def read(get, handle, name, kind):
    value, written = np.zeros(1, kind), np.zeros(1, np.uint64)
    get(handle, name, value.ctypes.data, value.nbytes, written.ctypes.data)
    return int(value[0])

problem = Problem(33, 512, 64, "bfloat16", "float32", 700, 4)
desc, *layouts = descriptors(lt, problem)
names = lt.MatrixLayoutAttribute
for handle, (kind, rows, columns, ld) in zip(layouts, problem.layouts(), strict=True):
    got = [read(lt.matrix_layout_get_attribute, handle, n, lt.get_matrix_layout_attribute_dtype(n))
           for n in (names.TYPE, names.ROWS, names.COLS, names.LD)]
    wanted = CudaDataType.CUDA_R_32F if kind == "float32" else CudaDataType.CUDA_R_16BF
    assert got == [wanted, rows, columns, ld], (got, rows, columns, ld)
names = lt.MatmulDescAttribute
assert [read(lt.matmul_desc_get_attribute, desc, n, lt.get_matmul_desc_attribute_dtype(n))
        for n in (names.TRANSA, names.TRANSB)] == [1, 0]
names = lt.MatmulPreferenceAttribute
preference = preferences(lt, problem, 1 << 25)
got = [read(lt.matmul_preference_get_attribute, preference, n, lt.get_matmul_preference_attribute_dtype(n))
       for n in (names.MAX_WORKSPACE_BYTES, names.MIN_ALIGNMENT_A_BYTES, names.MIN_ALIGNMENT_D_BYTES)]
assert got == [1 << 25, 16, 4]
print("held")
''', "")
    if said == "absent\n":
        pytest.skip("cuBLASLt or its bindings are not installed (extra cu13)")
    assert said == "held\n"
