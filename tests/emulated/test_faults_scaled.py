"""Faults planted in the block-scaled and FP8 products, in the quantisers, and in barriers of the hand-written tile."""
from __future__ import annotations

from pathlib import Path

import pytest
from emulated.test_faults import case_named, outcome, planted
from emulated.test_nvfp4 import caught, problem

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.kernels.compile import Builder

GEMM, TOKENS, BY_HAND = "fp8/gemm.cu", "quantize/tokens.cu", "nvfp4/gemm_16.ptx"
MXFP8, FP8, BLOCK = (f"linear_quantized/{form}/bfloat16/T150" for form in ("mxfp8", "fp8", "fp8_block"))
FAULTS = {
    # name: (source, text, its replacement, case, how it shows)
    "scale of another lane, x": (GEMM, "16 * (t >> 1) + 8 * (t & 1) + g", "16 * (t & 1) + 8 * (t >> 1) + g", MXFP8,
                                 "result"),
    "scale of another lane, w": (GEMM, "nw + 8 * t + g) >> shift", "nw + 8 * (t ^ 1) + g) >> shift", MXFP8, "result"),
    "scale of another k": (GEMM, "const int shift = 16 * (step & 1);", "const int shift = 0;", MXFP8, "result"),
    "scale of another block": (GEMM, "blocks + (step >> 1)] * sw", "blocks] * sw", BLOCK, "result"),
    "weakened wait": (GEMM, "copy_wait<STAGES - 2>()", "copy_wait<STAGES - 1>()", FP8, "copy is under way"),
    "block scales past the last row": (GEMM, "m < M ? scales_x[(i64)m * blocks + (step >> 1)] * sw : 0.0f",
                                       "scales_x[(i64)m * blocks + (step >> 1)] * sw", BLOCK, "of an allocation of"),
    "factors past the last row": (GEMM, "const float fx = m < M ? scales_x[m] : 0.0f;", "const float fx = scales_x[m];",
                                  FP8, "of an allocation of"),
}
RACES = {
    "tiles of MXFP8": (GEMM, "        __syncthreads();\n", "", MXFP8),
    "tiles of FP8 blocks": (GEMM, "        __syncthreads();\n", "", BLOCK),
    "largest of a row": (TOKENS, "    __syncthreads();\n", "", "quantize/float32/fp8/T2/K5000"),
}
BARRIERS = {
    # name: (text, its replacement, K at which a warp may run into what another still reads)
    "a stage has come": ("    cp.async.wait_group 2;\n    bar.sync 0;\n", "    cp.async.wait_group 2;\n", 1280),
    "the last stage is read": ("    cp.async.wait_all;\n    bar.sync 0;\n", "    cp.async.wait_all;\n", 1280),
    "sums are there": ("    st.shared.f32 [%r52+1060], %c3;\n    bar.sync 0;\n",
                       "    st.shared.f32 [%r52+1060], %c3;\n", 1024),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    source, old, new, name, shows = FAULTS[fault]
    message = outcome(case_named(name), Builder("sm_120f", None, planted(tmp_path, source, old, new), False))
    assert shows in message and message, message


@pytest.mark.parametrize("fault", RACES)
def test_a_missing_barrier_shows_under_some_schedule(fault: str, tmp_path: Path) -> None:
    source, old, new, name = RACES[fault]
    builder = Builder("sm_120f", None, planted(tmp_path, source, old, new), False)
    assert any(outcome(case_named(name), builder, seed) for seed in range(6))


@pytest.mark.parametrize("barrier", BARRIERS)
def test_every_barrier_of_the_hand_written_tile_is_needed(barrier: str, tmp_path: Path) -> None:
    old, new, cols = BARRIERS[barrier]
    builder = Builder("sm_120f", None, planted(tmp_path, BY_HAND, old, new))
    x, w = problem(10, 40, cols)
    assert not caught(EmulatedQueue("sm_120f", seed=0), x, w)
    assert any(caught(EmulatedQueue("sm_120f", builder, seed=seed), x, w) for seed in range(6))
