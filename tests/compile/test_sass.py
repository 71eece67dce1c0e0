"""Machine code of the Blackwell builds: the block-scaled instructions are there, and no stand-in."""
from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.compile import Builder
from blackwell_infer.kernels.kernel import Kernel, Variant
from blackwell_infer.ops.cuda import fp8, nvfp4, recurrent


@pytest.fixture(scope="module")
def nvdisasm() -> str:
    from cuda.pathfinder import find_nvidia_binary_utility

    found = find_nvidia_binary_utility("nvdisasm")
    if found is None:
        pytest.skip("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
    return str(found)


@pytest.fixture(scope="module")
def builder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    kept = request.config.pluginmanager.hasplugin("cacheprovider")
    return Builder("sm_120f", request.config.cache.mkdir("kernels") if kept else tmp_path_factory.mktemp("kernels"))


def opcodes(nvdisasm: str, builder: Builder, v: Variant, folder: Path) -> list[str]:
    """Every instruction of the variant's entry, with its modifiers."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(builder.build(v).cubin)
    text = subprocess.run([nvdisasm, "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
    section = re.search(rf"\.section\s+\.text\.{v.kernel.entry}\b(.*?)(?=\.section|\Z)", text, re.S)
    assert section, f"no code of {v.key}"
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", section[1])


NVFP4 = "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X"


@pytest.mark.parametrize(("v", "wanted", "count"), [
    (nvfp4.GEMM.variant(ACT="bf16", TILE_M=128), NVFP4, 32),
    (nvfp4.GEMM.variant(ACT="bf16", TILE_M=64), NVFP4, 16),
    (nvfp4.GEMM.variant(ACT="f32", TILE_M=16), NVFP4, 4),
    (nvfp4.GEMM_16.variant(), NVFP4, 4),
    (fp8.GEMM.variant(ACT="bf16", FORM="mxfp8", TILE_M=128), "QMMA.SF.16832.F32.E4M3.E4M3.E8", 32),
    (fp8.GEMM.variant(ACT="bf16", FORM="fp8", TILE_M=128), "QMMA.16832.F32.E4M3.E4M3", 32),
    (fp8.GEMM.variant(ACT="bf16", FORM="fp8_block", TILE_M=64), "QMMA.16832.F32.E4M3.E4M3", 16),
], ids=lambda value: value.key if isinstance(value, Variant) else "")
def test_tensor_instructions(nvdisasm: str, builder: Builder, tmp_path: Path, v: Variant, wanted: str,
                             count: int) -> None:
    found = opcodes(nvdisasm, builder, v, tmp_path)
    tensor = [op for op in found if "MMA" in op]
    assert tensor == [wanted] * len(tensor) and len(tensor) % count == 0 and tensor
    assert any(op.startswith("LDGSTS") for op in found) and any(op.startswith("LDSM.16.M88.4") for op in found)
    assert not any(op.startswith("SHFL") for op in found), "shuffles belong to the stand-in"


def test_values_are_encoded_by_the_native_conversion(nvdisasm: str, builder: Builder, tmp_path: Path) -> None:
    from blackwell_infer.ops.cuda.quantize import QUANTIZE

    found = opcodes(nvdisasm, builder, QUANTIZE.variant(ACT="bf16", QUANT="nvfp4"), tmp_path)
    assert sum("E2M1" in op for op in found) >= 4


def test_assembly_that_is_wrong_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "wrong.ptx").write_text(".version 8.8\n.target @TARGET@\n.address_size 64\n"
                                        ".visible .entry wrong()\n{\n    add.u32 %r0, 1;\n    ret;\n}\n")
    v = Kernel("wrong.ptx", "wrong", ()).variant()
    with pytest.raises(KernelError, match=r"wrong\(\): does not assemble with -arch=sm_120f(.|\n)*line 6"):
        Builder("sm_120f", None, tmp_path).build(v)
    with pytest.raises(KernelError, match=r"ptx/absent\.ptx does not exist"):
        Builder("sm_120f", None, tmp_path).build(Kernel("absent.ptx", "absent", ()).variant())


def test_states_go_through_tensor_cores(nvdisasm: str, builder: Builder, tmp_path: Path) -> None:
    """The pass over chunks: three products of TF32 for each of float32, tiles in bulk copies."""
    found = opcodes(nvdisasm, builder, recurrent.PASS.variant(), tmp_path)
    tensor = [op for op in found if "MMA" in op]
    assert tensor == ["HMMA.1688.F32.TF32"] * len(tensor) and len(tensor) % 48 == 0 and tensor
    assert sum(op.startswith("UBLKCP") for op in found) == 4
    assert not any(op.startswith(("SHFL", "STL", "LDL")) for op in found)
