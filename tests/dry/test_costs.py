"""Declared costs: every kernel has one, and those of a decode step add up to the weights and the cache."""
from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from tooling import load_tool

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.config import EngineConfig
from blackwell_infer.device.dry import DryQueue
from blackwell_infer.engine.load import survey
from blackwell_infer.engine.profile import DryModel, Profile, decode_work
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import Call, Cost, moved, multiplied
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.kv.spec import PAGE
from blackwell_infer.ops.cuda.catalog import ALL_KERNELS
from blackwell_infer.ops.cuda.gemm_lt import library_cost

synthetic = load_tool("synthetic")
CONTEXT = 8192


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file at the shape of Qwen3, a sixteenth as deep and with fewer words."""
    shape = msgspec.structs.replace(synthetic.SHAPES["qwen3-8b"], layers=2, hidden=1024, mlp=3072, heads=16, vocab=2048)
    path = tmp_path_factory.mktemp("costs") / "m.gguf"
    synthetic.write_gguf(shape, synthetic.MIXES["q4_k_m"], path, 0)
    return path


def profile(path: Path, lengths: list[int], arch: str = "sm_90a", libraries: frozenset[str] = frozenset()) -> Profile:
    """A decode step of rows with so many keys."""
    checkpoint = open_checkpoint(path)
    found = survey(checkpoint, EngineConfig(max_context=CONTEXT, max_batch=len(lengths)), on_host=False)
    queue = DryQueue(arch, libraries=libraries, total=1 << 50)
    return DryModel(found, checkpoint, CONTEXT, len(lengths), queue).profile(lengths)


def expected(path: Path, lengths: list[int]) -> int:
    """Bytes of weights and of keys and values."""
    found = survey(open_checkpoint(path), EngineConfig(max_context=CONTEXT), on_host=False)
    return found.measure.decode + sum(lengths) * found.build.page_bytes // PAGE


def test_every_kernel_declares_a_cost() -> None:
    assert [kernel.entry for kernel in ALL_KERNELS if kernel.cost is None] == []


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120f"])
@pytest.mark.parametrize("lengths", [[1], [5000], [300, 300, 300], [8000] * 8])
def test_a_decode_step_moves_its_weights_and_its_cache(qwen3: Path, arch: str, lengths: list[int]) -> None:
    got = profile(qwen3, lengths, arch).cost.nbytes
    assert got == pytest.approx(expected(qwen3, lengths), rel=0.04)
    assert got >= expected(qwen3, lengths), "activations come on top"


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120f"])
def test_a_decode_step_reads_the_experts_of_one_token(arch: str, tmp_path: Path) -> None:
    """Eight of sixteen, in fragment order."""
    shape = msgspec.structs.replace(synthetic.SHAPES["qwen3-30b-a3b"], layers=1, hidden=1024, mlp=512, heads=8,
                                    experts=16, vocab=2048)
    synthetic.write_gguf(shape, synthetic.MIXES["q4_k_m"], tmp_path / "m.gguf", 0)
    found = profile(tmp_path / "m.gguf", [40], arch)
    assert found.cost.nbytes == pytest.approx(expected(tmp_path / "m.gguf", [40]), rel=0.04)
    assert sum(phase.launches for phase in found.phases if phase.kernel.startswith("moe_")) == 3


def test_products_count_two_operations_for_each_weight_and_row(qwen3: Path) -> None:
    short = profile(qwen3, [1] * 4)
    weights = sum(int(np.prod(t.shape)) for n, t in open_checkpoint(qwen3).tensors.items()
                  if len(t.shape) == 2 and n != "model.embed_tokens.weight")
    attended = sum(phase.cost.flops for phase in short.phases if phase.kernel.startswith("attend"))
    assert short.cost.flops - attended == 2 * 4 * weights
    assert attended == 2 * 4 * (4 * 16 * 128), "layers, rows, and 4 for each head and dimension of one key"


def test_longer_contexts_add_their_keys_and_values_alone(qwen3: Path) -> None:
    """Both depths lie in one bucket, so what is launched is the same."""
    a, b = (profile(qwen3, [n] * 2) for n in (4200, 8000))
    assert [phase.kernel for phase in a.phases] == [phase.kernel for phase in b.phases]
    token = survey(open_checkpoint(qwen3), EngineConfig(), on_host=False).build.page_bytes // PAGE
    assert b.cost.nbytes - a.cost.nbytes == pytest.approx(2 * 3800 * token, rel=0.1)


def test_many_rows_through_the_library_count_it_too(qwen3: Path) -> None:
    """A dequantised matrix is written by one kernel and read by the library, so more is moved than is stored."""
    got = profile(qwen3, [2] * 264, libraries=frozenset({"cublaslt"}))
    calls = [phase for phase in got.phases if phase.kernel == "cublaslt"]
    assert calls and all(phase.cost.flops > 0 and phase.cost.nbytes > 0 for phase in calls)
    assert got.cost.nbytes > 2 * expected(qwen3, [2] * 264)


def test_launches_of_one_shape_are_one_phase(qwen3: Path) -> None:
    phases = profile(qwen3, [40]).phases
    assert len({(p.kernel, p.grid, p.block, p.shape) for p in phases}) == len(phases) < 20
    down = [p for p in phases if p.shape.startswith("M 1 N 1024 N1 0 K 3072 ")]
    assert sum(p.launches for p in down) == 2, "one down projection in each layer"


def test_block_tables_of_a_decode_step_stay_within_the_pages() -> None:
    work = decode_work([100, 70], slots=2, context=128, pages=5)
    assert np.asarray(work.batch.pages).max() < 5
    assert np.asarray(work.batch.lengths).tolist() == [100, 70]


def test_costs_of_simple_calls() -> None:
    x, w, y = (np.zeros(s, np.float32) for s in ((2, 8), (3, 8), (2, 10)))
    call = Call({"x": x, "w": w, "bias": None, "y": y, "M": 2, "N": 3, "K": 8})
    assert multiplied(call) == Cost(64 + 96 + 2 * 3 * 4, 2 * 2 * 3 * 8)
    assert moved(Call({"x": x, "y": y, "T": 2})) == Cost(64 + 80)
    assert library_cost((x, w), (y,)) == Cost(64 + 96 + 24, 2 * 2 * 3 * 8)
    assert Call({}, lengths=(5, 90)).keys(2, 128, 40) == 45 and Call({}).keys(2, 128, 0) == 256


def test_a_nibble_product_counts_both_halves_of_a_byte() -> None:
    """[256, 1024] by its like in NVFP4: rows of 512 bytes, and a scale for every 8 of them."""
    codes, scales = np.zeros((256, 512), np.uint8), np.zeros(256 // 128 * 64 // 4 * 512, np.uint8)
    out = np.zeros((256, 256), np.float32)
    assert library_cost((codes, scales, codes, scales), (out,)).flops == 2 * 256 * 256 * 1024


def test_a_kernel_without_a_cost_says_so() -> None:
    kernel = Kernel("a.cu", "a", (Param("x", "in"),))
    with pytest.raises(KernelError, match="a: declares no cost"):
        kernel.estimate([None])
