"""Launchers of the linear ops: which kernel a shape takes, shared scratch, and what is refused."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from blackwell_infer.device.check import SHARED_LIMIT
from blackwell_infer.device.dry import DryQueue
from blackwell_infer.errors import KernelError
from blackwell_infer.ops.cuda import gemm, medium, small
from blackwell_infer.ops.cuda.expert_groups import RAW
from blackwell_infer.ops.cuda.linear import RING, SMALL_ROWS, embed, linear, logits
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Weight
from blackwell_infer.quant.fragments import FRAGMENTS, SUFFIX

BF16 = np.dtype(ml_dtypes.bfloat16)
LIBRARY = frozenset({"cublaslt"})


def weight(q: DryQueue, form: str, rows: int, cols: int) -> Weight:
    f = FORMATS[form]
    dense: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": BF16}
    part = q.empty((rows, cols), dense[form]) if form in dense else q.empty(
        (rows, cols // f.block * f.block_bytes), np.uint8)
    return Weight(form, (rows, cols), (part,))


def kernels(q: DryQueue) -> list[str]:
    return [launch.entry for launch in q.trace]


@pytest.mark.parametrize(("rows", "form", "cols", "dtype", "libraries", "expected"), [
    (1, "q4_k", 256, BF16, LIBRARY, ["linear_small_mma"]),
    (SMALL_ROWS, "bf16", 256, BF16, LIBRARY, ["stage", "linear_small"] * 4),
    (SMALL_ROWS, "bf16", 264, BF16, LIBRARY, ["linear_small_mma"]),
    (SMALL_ROWS + 1, "bf16", 256, BF16, LIBRARY, ["cublaslt"]),
    (SMALL_ROWS + 1, "q4_k", 256, BF16, LIBRARY, ["weight_rows", "cublaslt"]),
    (SMALL_ROWS + 1, "q4_k", 256, BF16, frozenset(), ["weight_rows", "gemm"]),
    (SMALL_ROWS + 1, "f16", 64, BF16, frozenset(), ["weight_rows", "gemm"]),
    (500, "bf16", 172, BF16, LIBRARY, ["linear_small_mma"]),
    (16, "q8_0", 64, np.float32, LIBRARY, ["linear_small_fma"]),
    (500, "f32", 171, np.float32, LIBRARY, ["gemm_f32"]),
    (500, "f32", 172, np.float32, LIBRARY, ["cublaslt"]),
    (500, "q6_k", 256, np.float32, frozenset(), ["weight_rows", "gemm_f32"]),
    (0, "bf16", 64, BF16, LIBRARY, []),
])
def test_the_shape_and_the_types_choose_the_kernel(rows: int, form: str, cols: int, dtype: Any,
                                                   libraries: frozenset[str], expected: list[str]) -> None:
    q = DryQueue(libraries=libraries)
    out = linear(q, q.empty((rows, cols), dtype), (weight(q, form, 40, cols),))
    assert out.shape == (rows, 40) and out.dtype == dtype and kernels(q) == expected


def fragments(q: DryQueue, form: str, rows: int, cols: int) -> Weight:
    size = -(-rows // 16) * -(-cols // 256) * FRAGMENTS[form].tile_bytes
    return Weight(form + SUFFIX, (rows, cols), (q.empty((size,), np.uint8),))


@pytest.mark.parametrize(("forms", "rows", "expected"), [
    (("q4_k", "q6_k"), 1, ["stage", "linear_small"]), (("q6_k", "q4_k", "q4_k"), 8, ["stage"] + ["linear_small"] * 2),
    (("q4_k", "q8_0"), 1, ["stage"] + ["linear_small"] * 2),
    (("q4_k", "q6_k"), 17, ["stage"] + ["linear_medium", "linear_medium_sums"] * 2)])
def test_two_formats_of_one_kernel_are_one_launch(forms: tuple[str, ...], rows: int, expected: list[str]) -> None:
    q = DryQueue(libraries=LIBRARY)
    linear(q, q.empty((rows, 4096), BF16), tuple(fragments(q, form, 1024, 4096) for form in forms))
    assert kernels(q) == expected


@pytest.mark.parametrize("sizes", [
    (("q4_k", 5120), ("q6_k", 1024)), (("fp8", 16384), ("bf16", 96)), (("bf16", 8), ("fp8", 30)),
    (("q6_k", 70), ("q4_k", 24576)), (("nvfp4", 34816),)])
@pytest.mark.parametrize("m", [1, 3, 8, 16])
def test_every_group_of_rows_has_a_turn_and_all_ctas_run_at_once(sizes: small.Sizes, m: int) -> None:
    shape = small.geometry(*sizes[0], 5120, len(sizes) == 1)
    for sms, shared in ((132, 224 << 10), (48, 96 << 10)):
        found = small.choose(sizes, shape, m, 5120, sms, shared)
        if found is None:  # multiply takes half as many rows
            assert m > 4 and shared < 100 << 10
            continue
        tiling, found_shares = found[1], small.shares(sizes, shape, found[1], sms)
        assert sum(share.ctas for share in found_shares) <= tiling.ctas * sms
        for (form, n), share in zip(sizes, found_shares, strict=False):
            groups = -(-n // small.group_rows(shape, tiling))
            assert 0 < share.ctas <= groups <= share.ctas * share.turns and groups > (share.turns - 1) * share.ctas
            assert shape.warps * tiling.tiles * share.ahead * small.tile_bytes(form) <= small.ring_bytes(
                sizes, shape, tiling) <= shared


SMALL, MEDIUM, LARGE = ["linear_small"], ["linear_medium", "linear_medium_sums"], ["fragment_tiles", "cublaslt"]


@pytest.mark.parametrize(("form", "rows", "dtype", "expected"), [
    ("q4_k", 16, BF16, ["stage", *SMALL]), ("q4_k", 17, BF16, ["stage", *MEDIUM]),
    ("q4_k", 256, BF16, ["stage", *MEDIUM]), ("q4_k", 257, BF16, LARGE), ("nvfp4", 17, np.float16, ["stage", *MEDIUM]),
    ("fp8", 64, BF16, ["stage", *MEDIUM]), ("q6_k", 17, BF16, ["stage", *MEDIUM]),
    ("q6_k", 256, BF16, ["stage", *MEDIUM]), ("q6_k", 257, BF16, LARGE),
    ("q8_0", 64, BF16, ["stage", *SMALL] * 4), ("q8_0", 65, BF16, LARGE)])
def test_weights_in_fragment_order_have_kernels_of_their_own(form: str, rows: int, dtype: Any,
                                                             expected: list[str]) -> None:
    q = DryQueue(libraries=LIBRARY)
    linear(q, q.empty((rows, 512), dtype), (fragments(q, form, 40, 512),))
    assert kernels(q) == expected


def test_several_weights_share_one_staging_and_reproducible_ones_the_kernel_for_few() -> None:
    q = DryQueue(libraries=LIBRARY)
    w = (fragments(q, "q8_0", 40, 512), fragments(q, "q4_k", 40, 512), fragments(q, "q5_k", 40, 512))
    linear(q, q.empty((100, 512), BF16), w)
    assert kernels(q) == ["stage", *LARGE, *MEDIUM, *MEDIUM]
    q.trace.clear()
    linear(q, q.empty((100, 512), BF16), w[1:], reproducible=True)
    assert kernels(q) == ["stage", *SMALL] * 14


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120f"])
@pytest.mark.parametrize("form", medium.FORMATS)
def test_the_order_of_additions_follows_from_matrix_and_gpu(form: str, arch: str) -> None:
    q, (first, last) = DryQueue(), (17, 256)
    for n, k in ((40, 256), (1024, 4096), (4096, 4096), (24576, 4096), (4096, 12288), (151936, 4096)):
        shared = SHARED_LIMIT[arch] - medium.STATIC
        tilings = [medium.choose(form, m, n, k, shared) for m in (17, 32, 33, 64, 256)]
        assert len({t.tiles for t in tilings}) == 1
        fits = all(2 * t.unit_bytes(form) <= shared for t in tilings)
        w = fragments(q, form, 40, 512)
        taken = [medium.takes(w, BF16, m, arch) for m in (first - 1, first, last, last + 1)]
        assert taken == [False, fits, fits, False]
        assert fits or (form, arch) == ("fp8", "sm_120f")


def test_formats_of_medium_matmuls_are_those_that_float16_holds() -> None:
    """SHRINK of ptx/include/fragments_*.cuh is 0 for all others."""
    folder = Path(__file__).parents[2] / "ptx" / "include"
    text = "".join((folder / f"fragments_{name}.cuh").read_text() for name in ("gguf", "codes"))
    shrinks = {}
    for form in FRAGMENTS:
        found = re.search(rf"^struct {form}_fragments .*?^}};", text, re.S | re.M)
        value = re.search(r"float SHRINK = ([0-9./f ]+);", found[0]) if found else None
        assert value, form
        top, _, bottom = value[1].replace("f", "").partition("/")
        shrinks[form] = float(top) / float(bottom or 1)
    assert {form for form, value in shrinks.items() if value} == set(medium.FORMATS)
    assert all(np.frexp(value)[0] == 0.5 for value in shrinks.values() if value), "powers of two: they round nothing"


def test_row_blocks_stand_side_by_side_with_their_part_of_the_bias() -> None:
    q = DryQueue(libraries=LIBRARY)
    w = (weight(q, "q4_k", 128, 256), weight(q, "q6_k", 64, 256))
    bias = q.empty((192,), np.float32)
    for rows in (1, 100):
        assert linear(q, q.empty((rows, 256), BF16), w, bias).shape == (rows, 192)
    assert kernels(q) == ["linear_small_mma"] * 2 + ["weight_rows", "cublaslt", "add_bias"] * 2
    columns = [launch.args[-2 if launch.entry == "linear_small_mma" else -1]
               for launch in q.trace if launch.entry in ("linear_small_mma", "add_bias")]
    assert columns == ["int 0", "int 128"] * 2
    assert [launch.args[4] for launch in q.trace[:2]] == ["float32[128]", "float32[64]"]


def test_a_step_holds_one_matrix_dequantised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "SCRATCH", 1 << 20)
    q = DryQueue(libraries=LIBRARY)
    x, w = q.empty((100, 1024), BF16), weight(q, "q4_k", 5000, 1024)
    for _ in range(3):
        with q.step():
            for _ in range(20):
                logits(q, x, (w,))
    assert q.arena.peak <= 20 * 100 * 5000 * 4 + (1 << 20) + 20 * 256
    assert kernels(q)[:4] == ["weight_rows", "cublaslt"] * 2 and len(q.trace) == 3 * 20 * 2 * 10


def test_embedding_takes_one_block_per_token() -> None:
    q = DryQueue()
    out = embed(q, weight(q, "q6_k", 77, 512), q.empty((5,), np.int32), "bfloat16")
    assert out.shape == (5, 512) and out.dtype == BF16
    assert (q.trace[0].grid, q.trace[0].block) == ((5, 1, 1), (64, 1, 1))


def test_a_missing_kernel_is_named() -> None:
    q = DryQueue()
    part = q.empty((4, 64), np.uint8)
    with pytest.raises(KernelError, match=r"linear: no kernel for nf4 weights and bfloat16 .* sm_90a; .* q4_k, q5_k"):
        linear(q, q.empty((1, 64), BF16), (Weight("nf4", (4, 64), (part,)),))
    with pytest.raises(KernelError, match="float64 activations"):
        linear(q, q.empty((1, 64), np.float64), (weight(q, "f32", 4, 64),))
    with pytest.raises(KernelError, match="rows of 64 elements, a bf16 weight has rows of 32"):
        linear(q, q.empty((1, 64), BF16), (weight(q, "bf16", 4, 32),))


def test_ring_sizes_are_those_of_the_kernels() -> None:
    folder = Path(__file__).parents[2] / "ptx" / "include"
    text = (folder / "blocks.cuh").read_text() + (folder / "scaled.cuh").read_text()
    dense = re.search(r"\? (\d+) : (\d+);\s+static const int STAGES = (\d+)", text)
    stages = re.search(r"struct e4m3_codes {.*?STAGES = (\d+)", text, re.S)
    strides = {form: re.search(rf"struct {form} .*?STRIDE = (\d+)", text, re.S) for form in (
        "fp8_format", "scaled_e4m3")}
    assert dense and stages and all(strides.values())
    wanted = {"f32": int(dense[1]) * int(dense[3]), "f16": int(dense[2]) * int(dense[3])}
    wanted["bf16"] = wanted["f16"]
    for form, found in zip(("fp8", "mxfp8", "fp8_block"), (*strides.values(), strides["scaled_e4m3"]), strict=True):
        assert found
        wanted[form] = int(found[1]) * int(stages[1])
    for form in set(RING) - set(wanted):
        found = re.search(rf"struct {form}_format : .*?STRIDE = (\d+), STAGES = (\d+)", text, re.S)
        assert found, form
        wanted[form] = int(found[1]) * int(found[2])
    assert wanted == RING
    # ptx/moe/parts.cuh: whole chunks as in the ring, or halves with room for a head
    for form, found in ((form, RAW[form]) for form in RING):
        half = {"f32": 128, "f16": 128, "bf16": 128, "q8_0": 136, "fp8": 128, "mxfp8": 128, "fp8_block": 128}.get(form)
        stages = 2 if half else 3
        scales = 32 if form in ("mxfp8", "fp8_block") else 0
        assert found == ((half + 31) // 16 * 16 + scales if half else RING[form] // stages), form


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float32)])
def test_no_rows_launch_nothing(dtype: np.dtype[Any]) -> None:
    q = DryQueue()
    with q.step():
        y = linear(q, q.empty((0, 512), dtype), (weight(q, "bf16", 40, 512), weight(q, "f32", 3, 512)))
    assert y.shape == (0, 43) and kernels(q) == []
