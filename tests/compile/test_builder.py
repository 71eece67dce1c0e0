"""The compiler's front and back: includes, error places, usage, the disk cache and its failures."""
from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from blackwell_infer.errors import KernelError
from blackwell_infer.kernels import compile as compiling
from blackwell_infer.kernels.compile import Builder, default_cache, parse_usage
from blackwell_infer.kernels.kernel import Kernel, Variant
from blackwell_infer.kernels.source import read_source, source_root
from blackwell_infer.ops.cuda import attention, medium, nvfp4

ADD = """#include "twice.cuh"
extern "C" __global__ void add(float *y) {
    __shared__ float s[64];
    s[threadIdx.x] = y[0];
    __syncthreads();
    y[1] = s[3];
}
extern "C" __global__ void other(float *y) { y[0] = twice(BY); }
"""
TWICE = '#pragma once\n#include "deep.cuh"\n__device__ float twice(float x) { return deep(x) * 2; }\n'
DEEP = '#pragma once\n#include "../include/deep.cuh"\n__device__ float deep(float x) { return x; }\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "ptx"
    for name, text in (("math/add.cu", ADD), ("include/twice.cuh", TWICE), ("include/deep.cuh", DEEP)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def add(by: int = 1, entry: str = "add") -> Variant:
    return Kernel("math/add.cu", entry, (), {"BY": (1, 2)}).variant(BY=by)


def count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sources compiled from now on."""
    seen: list[str] = []
    real = compiling.compile_text

    def spy(text: str, name: str, options: tuple[str, ...], key: str) -> compiling.Unit:
        seen.append(name)
        return real(text, name, options, key)

    monkeypatch.setattr(compiling, "compile_text", spy)
    return seen


def test_includes_are_joined_once_and_keep_their_places(root: Path) -> None:
    text = read_source("math/add.cu", root)
    assert text.count("deep(float x)") == 1 and "#include" not in text and "#pragma once" not in text
    assert text.splitlines()[0] == '#line 1 "ptx/math/add.cu"' and '#line 2 "ptx/math/add.cu"' in text
    assert str(root) not in text


@pytest.mark.parametrize(("line", "message"), [
    ('#include "gone.cuh"', r'ptx/math/add.cu\(1\): #include "gone.cuh": no such file'),
    ("#include <cuda_fp16.h>", "kernels include only files of ptx/"),
    ('#include "../../outside.cuh"', "no such file"),
])
def test_bad_includes_name_their_place(root: Path, line: str, message: str) -> None:
    (root.parent / "outside.cuh").write_text("")
    (root / "math/add.cu").write_text(line)
    with pytest.raises(KernelError, match=message):
        read_source("math/add.cu", root)


def test_a_missing_source_is_named(root: Path) -> None:
    with pytest.raises(KernelError, match=r"kernel source ptx/none\.cu does not exist"):
        read_source("none.cu", root)


def test_the_projects_sources_are_found() -> None:
    assert (source_root() / "include" / "scalar.cuh").is_file()


def test_usage_of_every_entry(root: Path) -> None:
    builder = Builder("sm_90a", root=root)
    binary = builder.build(add())
    assert binary.cubin[:4] == b"\x7fELF" and binary.arch == "sm_90a"
    assert 4 <= binary.registers <= 32 and binary.shared_bytes == 256 and binary.spill_bytes == 0
    assert builder.build(add(entry="other")).shared_bytes == 0
    with pytest.raises(KernelError, match=r"no extern \"C\" entry none \(found: add, other\)"):
        builder.build(add(entry="none"))


def test_spills_and_stack_are_read_from_the_log() -> None:
    log = ("ptxas info    : Compiling entry function 'a' for 'sm_90a'\nptxas info    : Function properties for a\n"
           "ptxas         .     160 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\n"
           "ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem\n")
    usage = parse_usage(log)["a"]
    assert (usage.registers, usage.spill_bytes, usage.stack_bytes, usage.shared_bytes) == (255, 32, 160, 1024)


def test_a_compile_error_names_variant_file_and_line(root: Path) -> None:
    (root / "include/deep.cuh").write_text(DEEP.replace("return x;", "return y;"))
    with pytest.raises(KernelError, match=r'(?s)add\(BY=2\).*ptx/include/deep.cuh\(3\): error: identifier "y"'):
        Builder("sm_90a", root=root).build(add(2))


def test_an_undeclared_arch_is_refused(root: Path) -> None:
    kernel = Kernel("math/add.cu", "add", (), archs=("sm_120f",))
    with pytest.raises(KernelError, match="no kernel for sm_90a; it exists for sm_120f"):
        Builder("sm_90a", root=root).build(kernel.variant())


def test_the_cache_is_keyed_by_everything_that_counts(root: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    cache, seen = tmp_path / "cache", count(monkeypatch)
    first = Builder("sm_90a", cache, root).build(add())
    assert Builder("sm_90a", cache, root).build(add()) == first and len(seen) == 1
    Builder("sm_90a", cache, root).build(add(entry="other"))
    assert len(seen) == 1, "entries of one source share a compilation"
    Builder("sm_90a", cache, root).build(add(2))
    Builder("sm_120f", cache, root).build(add())
    (root / "include/deep.cuh").write_text(DEEP.replace("return x", "return x + 1"))
    Builder("sm_90a", cache, root).build(add())
    assert len(seen) == 4 and len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_entry_is_built_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        damage: bytes | None) -> None:
    first, seen = Builder("sm_90a", tmp_path / "c", root).build(add()), count(monkeypatch)
    (entry,) = (tmp_path / "c").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    assert Builder("sm_90a", tmp_path / "c", root).build(add()) == first and len(seen) == 1
    assert entry.read_bytes() == whole


def test_an_unwritable_cache_is_said_once_and_done_without(root: Path, tmp_path: Path,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    builder = Builder("sm_90a", tmp_path / "file" / "cache", root)
    with caplog.at_level(logging.INFO, "blackwell_infer"):
        builder.build(add(1))
        builder.build(add(2))
    assert [r.getMessage().startswith("compiled kernels are not kept") for r in caplog.records] == [True]


def test_many_variants_build_on_threads_and_report(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, told = count(monkeypatch), []
    builder = Builder("sm_90a", root=root)
    builder.build_many([add(1), add(2), add(1, "other")], lambda *a: told.append(a), threads=2)
    assert len(seen) == 2 and [t[1:] for t in told] == [(1, 2, "kernels"), (2, 2, "kernels")]
    with pytest.raises(KernelError, match="none"):
        builder.build_many([add(entry="none")])


def test_the_cache_folder_follows_the_environment() -> None:
    assert default_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/bwinfer/kernels")
    assert default_cache({"XDG_CACHE_HOME": ""}) == Path(os.path.expanduser("~/.cache/bwinfer/kernels"))


def test_a_user_without_a_home_keeps_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert default_cache({}) is None


@pytest.mark.parametrize(("kernel", "arch"), [
    pytest.param(kernel, arch, id=f"{kernel.entry}-{arch}")
    for kernel in (medium.MEDIUM, attention.DECODE, nvfp4.GEMM_16) for arch in kernel.archs])
def test_texts_are_those_of_the_machine_code(kernel: Kernel, arch: str, tmp_path: Path) -> None:
    """What the interpreter runs is what the assembler gets; so too when both kinds of units share a cache."""
    v = next(kernel.variants())
    for _ in range(2):
        text, whole = Builder(arch, tmp_path, machine_code=False).unit(v), Builder(arch, tmp_path).unit(v)
        assert text.ptx == whole.ptx and whole.cubin and not text.cubin
