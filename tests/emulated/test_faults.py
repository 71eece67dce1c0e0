"""Faults planted in real kernel sources: the interpreter or the comparison with the reference catches each."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.emulator.parse import PtxError
from blackwell_infer.kernels.compile import Builder
from blackwell_infer.kernels.source import source_root
from blackwell_infer.ops import cases, ref
from blackwell_infer.ops.cuda import CudaOps

BARRIER = "        __syncthreads();  // this tile is there, and every warp has left the one before\n"
BINS = "    for (int b = threadIdx.x; b < BINS; b += THREADS) {\n        u64 n = narrow[b];\n"
LINEAR, LARGE, PREFILL = ("linear/bfloat16/q8_0/T7/K512/172", "linear/bfloat16/bf16/T600/K256/320",
                          "attend/bfloat16/4x4/D64/R8/W0/")
DECODE = "attention_/bfloat16/8x1/D128/R3/W700/"
FAULTS = {
    # name: (source, text, its replacement, case, how it shows)
    "swapped A registers": ("include/mma.cuh", 'f32.bf16.bf16.f32 "\n        "{%0, %1, %2, %3}, {%4, %5, %6, %7}',
                            'f32.bf16.bf16.f32 "\n        "{%0, %1, %2, %3}, {%5, %4, %6, %7}', LINEAR, "result"),
    "swapped B registers": ("linear/small_mma.cu", "mma_16816<act_t>(acc[0], a0, b.r[0], b.r[1]);",
                            "mma_16816<act_t>(acc[0], a0, b.r[1], b.r[0]);", LINEAR, "result"),
    "weakened wait of a ring": ("linear/small_mma.cu", "copy_wait<F::STAGES - 1>();", "copy_wait<F::STAGES>();",
                                LINEAR, "asynchronous copy is under way"),
    "weakened wait of a tile": ("linear/gemm.cu", "copy_wait<STAGES - 2>();", "copy_wait<STAGES - 1>();", LARGE,
                                "asynchronous copy is under way"),
    "no wait for the keys": ("attention/prefill.cu", "        copy_wait<0>();\n" + BARRIER, BARRIER, PREFILL,
                             "asynchronous copy is under way"),
    "no wait for a step's values": ("attention/decode.cu", "            arrived_at(n, 1);\n", "", DECODE,
                                    "nothing wrote|under way"),
    "no refill of keys": ("attention/decode.cu", "            set_done();\n            if (leads && ahead < end) "
                                "copy(page, ahead, n + stages, 0);\n", "", DECODE, "never|wait"),
    "a store past the last row": ("include/ring.cuh", "if (m0 + m >= M || n0 + n >= N) return;",
                                  "if (n0 + n >= N) return;", LINEAR, "of an allocation of"),
    "a store past the last column": ("include/ring.cuh", "if (m0 + m >= M || n0 + n >= N) return;",
                                     "if (m0 + m >= M) return;", LINEAR, "allocation of|result"),
}
RACES = {
    "sums of the warps": ("linear/small_mma.cu", "acc[h][i];\n    __syncthreads();", "acc[h][i];", LINEAR),
    "tiles of a product": ("linear/gemm.cu", "        copy_wait<STAGES - 2>();\n        __syncthreads();\n",
                           "        copy_wait<STAGES - 2>();\n", LARGE),
    "queries of a decode step": ("attention/decode.cu", "    __syncthreads();\n\n    for (int s = first;",
                                 "    for (int s = first;", DECODE),
    "keys of a prefill": ("attention/prefill.cu", BARRIER, "", PREFILL),
    "sum of a row": ("include/norm.cuh", "parts[threadIdx.x >> 5] = v;\n    __syncthreads();",
                     "parts[threadIdx.x >> 5] = v;", "add_rms_norm/bfloat16/T33/H2048"),
    "bins of the sampler": ("sample/sample.cu", "    __syncthreads();\n    u64 total = 0;\n" + BINS,
                            "    u64 total = 0;\n" + BINS, "sample_/filters/V320/top5"),
}


def case_named(name: str) -> cases.Case:
    """The first case whose name begins so."""
    found = [c for c in cases.CASES if c.name.startswith(name)]
    assert found, f"no case {name}"
    return found[0]


def planted(folder: Path, source: str, old: str, new: str) -> Path:
    """A copy of the kernel sources with one text replaced."""
    shutil.copytree(source_root(), folder / "ptx")
    path = folder / "ptx" / source
    text = path.read_text()
    assert text.count(old) == 1, f"{source} holds {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new))
    return folder / "ptx"


def outcome(case: cases.Case, builder: Builder, seed: int | None = None) -> str:
    """What catches the case: the interpreter's message, "result" for a wrong result, "" for nothing."""
    queue = EmulatedQueue(builder.arch, builder, seed=seed)
    expected = cases.run_case(ref, case, lambda a: a.copy(), lambda a: a)
    try:
        with queue.step():
            got = cases.run_case(CudaOps(queue), case, queue.put, lambda t: queue.download(t).result())
        cases.check(case, expected, got)
    except PtxError as e:
        return str(e)
    except AssertionError:
        return "result"
    return ""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    source, old, new, name, shows = FAULTS[fault]
    message = outcome(case_named(name), Builder("sm_90a", None, planted(tmp_path, source, old, new), False))
    assert any(part in message for part in shows.split("|")) and message, message
    if message != "result":
        assert all(part in message for part in ("(ptx/", ".cu", ", line ", "thread ("))          # where it happened


@pytest.mark.parametrize("fault", RACES)
def test_a_missing_barrier_shows_under_some_schedule(fault: str, tmp_path: Path) -> None:
    source, old, new, name = RACES[fault]
    builder = Builder("sm_90a", None, planted(tmp_path, source, old, new), False)
    assert any(outcome(case_named(name), builder, seed) for seed in range(6))


@pytest.mark.parametrize("name", sorted({f[3] for f in (*FAULTS.values(), *RACES.values())}))
def test_without_a_fault_every_schedule_is_right(name: str, pytestconfig: pytest.Config) -> None:
    builder = Builder("sm_90a", pytestconfig.cache.mkdir("kernels"), machine_code=False)
    assert [outcome(case_named(name), builder, seed) for seed in (None, 1)] == ["", ""]
