"""NVFP4 kernels in the interpreter: fused quantisers, what a row's bits depend on, and planted faults."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.emulator.parse import PtxError
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.compile import OPTIONS, Builder, compile_text
from blackwell_infer.kernels.source import read_source, source_root
from blackwell_infer.ops import inputs, ref
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.ops.cuda.nvfp4 import SCALE_SUMS
from blackwell_infer.quant.format import Quantized, Weight
from blackwell_infer.quant.tiled import paired

ARCHS = ("sm_90a", "sm_120f")
Queues = Callable[..., EmulatedQueue]
Values = np.ndarray[Any, Any]


def host(q: EmulatedQueue, x: Quantized) -> list[Values]:
    return [q.download(part).result() for part in x.parts]


def same(q: EmulatedQueue, a: Quantized, b: Quantized) -> bool:
    """Whether two results have the same bits, NaN included."""
    return a.format == b.format and a.shape == b.shape and all(
        x.tobytes() == y.tobytes() for x, y in zip(host(q, a), host(q, b), strict=True))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("form", ["nvfp4", "mxfp8", "fp8_block"])
@pytest.mark.parametrize(("dtype", "tokens", "cols"), [("bfloat16", 3, 192), ("float16", 130, 320),
                                                       ("float32", 2, 1088), ("bfloat16", 2, 8256)])
def test_fused_quantisers_are_their_parts(emulated: Queues, arch: str, form: str, dtype: str, tokens: int,
                                          cols: int) -> None:
    q, rng = emulated(arch), np.random.default_rng(cols)
    ops = CudaOps(q)
    x, other = (q.put(inputs.activations(rng, (tokens, cols), dtype, ((0, np.nan),))) for _ in range(2))
    gate_up = q.put(inputs.activations(rng, (tokens, 2 * cols), dtype, ((1, np.inf),)))
    norm = q.put(rng.uniform(-2, 2, cols).astype(np.float32))
    recorded = q.put(np.full(1, 2.0**-7, np.float32))
    with q.step():
        assert same(q, ops.rms_norm_quantize(x, norm, 1e-5, form, recorded),
                    ops.quantize(ops.rms_norm(x, norm, 1e-5), form, recorded))
        s, made = ops.add_rms_norm_quantize(x, other, norm, 1e-5, form)
        t, y = ops.add_rms_norm(x, other, norm, 1e-5)
        assert q.download(s).result().tobytes() == q.download(t).result().tobytes()
        assert same(q, made, ops.quantize(y, form))
        assert same(q, ops.swiglu_quantize(gate_up, form, recorded), ops.quantize(ops.swiglu(gate_up), form, recorded))


def problem(tokens: int, rows: int, cols: int) -> tuple[Quantized, Weight]:
    """Activations and weights whose every scale differs from its neighbours'."""
    rng = np.random.default_rng(tokens)
    x = inputs.activations(rng, (tokens, cols), "float32") * np.exp2(rng.integers(-3, 4, (tokens, cols // 16))).repeat(
        16, axis=1).astype(np.float32)
    return ref.quantize(x, "nvfp4", np.full(1, 2.0**-6, np.float32)), paired(inputs.weight(rng, "nvfp4", rows, cols))


def placed(q: EmulatedQueue, x: Quantized, w: Weight) -> tuple[Quantized, Weight]:
    return (Quantized(x.format, x.shape, tuple(q.put(np.asarray(p)) for p in x.parts)),
            Weight(w.format, w.shape, tuple(q.put(np.asarray(p)) for p in w.parts)))


def run(q: EmulatedQueue, x: Quantized, w: Weight) -> Values:
    x, w = placed(q, x, w)
    with q.step():
        return q.download(CudaOps(q).linear_quantized(x, (w,), "float32")).result()


@pytest.mark.parametrize("arch", ARCHS)
def test_a_row_has_the_same_bits_in_every_tile(emulated: Queues, arch: str) -> None:
    rng, q = np.random.default_rng(5), emulated(arch)
    rows = inputs.activations(rng, (200, 448), "float32")
    _, w = problem(1, 136, 448)

    def product(some: Values) -> Values:
        return run(q, ref.quantize(some, "nvfp4"), w)

    together = product(rows)                                                # tiles of 64 rows
    q.sm_count = 1
    assert product(rows).tobytes() == together.tobytes()                    # of 128
    for first, last in ((0, 1), (3, 7), (100, 116)):                        # of 16, on sm_120f by hand
        assert product(rows[first:last]).tobytes() == together[first:last].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_rest_of_a_library_product(emulated: Queues, dtype: str) -> None:
    rng, q = np.random.default_rng(3), emulated("sm_120f")
    sums, bias = rng.standard_normal((70, 300), np.float32), rng.standard_normal(300, np.float32)
    fx, fw = rng.standard_normal(1, np.float32), rng.standard_normal(300, np.float32)
    residual = inputs.activations(rng, (70, 311), dtype)
    y = q.zeros((70, 311), residual.dtype)
    v = SCALE_SUMS.variant(ACT={"float32": "f32", "bfloat16": "bf16"}[dtype])
    q.launch(v, (2, 16, 1), (256, 1, 1), *(q.put(a) for a in (sums, fx, fw, bias, residual)), y, 70, 300, 311, 11)
    want = np.zeros((70, 311), residual.dtype)
    want[:, 11:] = (sums * (fx * fw) + bias + residual[:, 11:].astype(np.float32)).astype(residual.dtype)
    assert q.download(y).result().tobytes() == want.tobytes()
    q.launch(v, (2, 70, 1), (256, 1, 1), q.put(sums), None, None, None, None, y, 70, 300, 311, 0)
    assert np.array_equal(q.download(y).result()[:, :300], sums.astype(residual.dtype))


@pytest.mark.parametrize("form", ["nvfp4", "nvfp4_f16", "mxfp4", "mxfp8", "fp8", "fp8_block"])
def test_16_bit_rows_have_the_same_bits_alone_and_in_company(emulated: Queues, form: str) -> None:
    rng, q = np.random.default_rng(6), emulated("sm_90a")
    x, w = inputs.activations(rng, (16, 544), "bfloat16"), inputs.weight(rng, form, 33, 544)
    w = Weight(w.format, w.shape, tuple(q.put(np.asarray(p)) for p in w.parts))

    def product(some: Values) -> bytes:
        with q.step():
            return q.download(CudaOps(q).linear(q.put(some), (w,))).result().tobytes()

    assert product(x) == b"".join(product(x[i : i + 1]) for i in range(16)) == product(x[:9]) + product(x[9:])


def wrong(got: Values, x: Quantized, w: Weight) -> bool:
    want = np.asarray(ref.linear_quantized(x, (w,), "float32"))
    return bool(not np.isfinite(got).all() or np.abs(got - want).max() > 1e-3 * np.abs(want).max())


def caught(q: EmulatedQueue, x: Quantized, w: Weight) -> bool:
    """Whether the interpreter refuses the run, or its result is wrong."""
    try:
        return wrong(run(q, x, w), x, w)
    except PtxError:
        return True


def changed(folder: Path, path: str, old: str, new: str) -> Path:
    """A copy of the kernel sources with one text replaced."""
    shutil.copytree(source_root(), folder / "ptx")
    source = folder / "ptx" / path
    text = source.read_text()
    assert text.count(old) == 1, f"{path} holds {old!r} {text.count(old)} times"
    source.write_text(text.replace(old, new))
    return folder / "ptx"


FAULTS = {
    "swapped A registers": ("include/nvfp4.cuh", '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])',
                            '"r"(a[1]), "r"(a[0]), "r"(a[2]), "r"(a[3])'),
    "scale of another lane": ("nvfp4/gemm.cu", "16 * (t >> 1) + 8 * (t & 1) + g", "16 * (t & 1) + 8 * (t >> 1) + g"),
    "scale of another k": ("nvfp4/gemm.cu", "found + 1024 + kk * 512", "found + 1024"),
    "weakened wait": ("nvfp4/gemm.cu", "copy_wait<STAGES - 2>()", "copy_wait<STAGES - 1>()"),
}


FAULTS_BY_HAND = {
    "swapped A registers": ("{%a8, %a9, %a10, %a11}, {%b4", "{%a9, %a8, %a10, %a11}, {%b4"),
    "scale of another k": ("ld.shared.b32 %sb2, [%r51+6656]", "ld.shared.b32 %sb2, [%r51+6528]"),
    "weakened wait": ("cp.async.wait_group 2;", "cp.async.wait_group 3;"),
}


@pytest.mark.parametrize("fault", FAULTS_BY_HAND)
def test_a_fault_in_the_hand_written_tile_is_caught(fault: str, tmp_path: Path) -> None:
    x, w = problem(10, 40, 1600)
    assert not wrong(run(EmulatedQueue("sm_120f"), x, w), x, w)
    root = changed(tmp_path, "nvfp4/gemm_16.ptx", *FAULTS_BY_HAND[fault])
    assert caught(EmulatedQueue("sm_120f", Builder("sm_120f", None, root)), x, w)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    x, w = problem(30, 40, 640)
    q = EmulatedQueue("sm_120f", Builder("sm_120f", None, changed(tmp_path, *FAULTS[fault])))
    assert caught(q, x, w)


def test_without_faults_the_result_is_right(emulated: Queues) -> None:
    x, w = problem(30, 40, 640)
    for seed in (None, 1):
        assert not wrong(run(emulated("sm_120f", seed), x, w), x, w)


def test_a_missing_barrier_shows_under_a_random_schedule(tmp_path: Path) -> None:
    x, w = problem(30, 40, 1280)
    root = changed(tmp_path, "nvfp4/gemm.cu", "        __syncthreads();\n", "")
    builder = Builder("sm_120f", None, root)
    assert any(caught(EmulatedQueue("sm_120f", builder, seed=seed), x, w) for seed in range(3))


def test_a_tail_out_of_bounds_is_an_error(tmp_path: Path) -> None:
    root = changed(tmp_path, "include/tile.cuh", "const bool inside = row + r < rows && at", "const bool inside = at")
    x, w = problem(30, 40, 640)
    with pytest.raises(PtxError, match=r"nvfp4_gemm.*cp\.async"):
        run(EmulatedQueue("sm_120f", Builder("sm_120f", None, root)), x, w)


def compiled(root: Path, arch: str) -> str:
    return compile_text(read_source("nvfp4/gemm.cu", root), "gemm.cu",
                        (f"--gpu-architecture={arch}", *OPTIONS, "-DACT=bf16", "-DTILE_M=64"), arch).ptx


@pytest.mark.parametrize("arch", ["sm_120a", "sm_120f", "sm_121a", "sm_121f"])
def test_every_blackwell_target_takes_the_native_path(arch: str) -> None:
    assert "mxf4nvf4.block_scale" in compiled(source_root(), arch)


def test_a_guard_for_1200_alone_loses_the_native_path(tmp_path: Path) -> None:
    root = changed(tmp_path, "include/arch.cuh",
                   "#if __CUDA_ARCH_FAMILY_SPECIFIC__ >= 1200 && __CUDA_ARCH_FAMILY_SPECIFIC__ < 1300",
                   "#if __CUDA_ARCH_FAMILY_SPECIFIC__ == 1200")
    assert "mxf4nvf4" in compiled(root, "sm_120f") and "mxf4nvf4" not in compiled(root, "sm_121a")


def test_the_plain_target_is_refused() -> None:
    with pytest.raises(KernelError, match="compile for sm_120f"):
        compiled(source_root(), "sm_120")


def test_misfits_are_refused(emulated: Queues) -> None:
    q = emulated("sm_120f")
    ops = CudaOps(q)
    x, w = placed(q, *problem(2, 8, 128))
    with pytest.raises(KernelError, match="nvfp4 activations, nvfp4 weights"):
        ops.linear_quantized(x, (Weight("nvfp4", w.shape, w.parts),), "float32")
    with pytest.raises(KernelError, match="rows of 128 elements, nvfp4_tiled weights with rows of 64"):
        ops.linear_quantized(x, (Weight(w.format, (8, 64), w.parts),), "float32")
    with pytest.raises(KernelError, match="float64 results"):
        ops.linear_quantized(x, (w,), "float64")
    with pytest.raises(KernelError, match="rows of 96 elements are no multiple of 64"):
        ops.quantize(q.put(np.zeros((1, 96), np.float32)), "nvfp4")
    with pytest.raises(KernelError, match="no kernel from float32 to int3"):
        ops.quantize(q.put(np.zeros((1, 96), np.float32)), "int3")
