"""Every variant of every kernel, compiled for every target: no spills, shared memory that fits, no register growth."""
from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from blackwell_infer.device.check import SHARED_LIMIT
from blackwell_infer.kernels.compile import Builder, compiler_version
from blackwell_infer.kernels.kernel import ARCHS, Kernel
from blackwell_infer.ops.cuda.catalog import ALL_KERNELS

TABLE = Path(__file__).parents[1] / "data" / "registers.json"
REFRESH = "if this is meant, run: python tools/registers.py"
SOURCES = sorted({kernel.source for kernel in ALL_KERNELS})


class Table(msgspec.Struct):
    """Registers per arch and variant, as one compiler version gave them; others differ by more than growth would."""

    compiler: str
    registers: dict[str, dict[str, int]]

    @property
    def comparable(self) -> bool:
        return self.compiler == ".".join(map(str, compiler_version()))


@pytest.fixture(scope="module")
def recorded() -> Table:
    return msgspec.json.decode(TABLE.read_bytes(), type=Table)


BUILDS = [pytest.param(arch, marks=pytest.mark.slow if arch == "sm_100f" else ()) for arch in ARCHS]
"""The target and what is measured come first: the other takes minutes"""


@pytest.fixture(scope="module")
def builders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Builder]:
    kept = request.config.pluginmanager.hasplugin("cacheprovider")
    cache = request.config.cache.mkdir("kernels") if kept else tmp_path_factory.mktemp("kernels")
    return {arch: Builder(arch, cache) for arch in ARCHS}


def kernels_of(source: str, arch: str) -> list[Kernel]:
    return [k for k in ALL_KERNELS if k.source == source and arch in k.archs]


def grown(before: int, now: int) -> bool:
    """By more than 8 registers and more than a tenth."""
    return now > max(before + 8, before * 1.1)


@pytest.mark.parametrize("arch", BUILDS)
@pytest.mark.parametrize("source", SOURCES)
def test_variants_compile_within_their_means(source: str, arch: str, builders: dict[str, Builder],
                                             recorded: Table) -> None:
    builder = builders[arch]
    variants = [v for k in kernels_of(source, arch) for v in k.variants()]
    builder.build_many(variants, threads=2)
    faults = []
    for v in variants:
        binary = builder.build(v)
        if binary.spill_bytes:
            faults.append(f"{v.key} spills {binary.spill_bytes} bytes")
        if binary.shared_bytes > SHARED_LIMIT[arch]:
            faults.append(f"{v.key} has {binary.shared_bytes} bytes of shared memory, {SHARED_LIMIT[arch]} exist")
        before = recorded.registers[arch].get(v.key)
        if before is None:
            faults.append(f"{v.key} is not in {TABLE.name}; {REFRESH}")
        elif recorded.comparable and grown(before, binary.registers):
            faults.append(f"{v.key} grew from {before} to {binary.registers} registers; {REFRESH}")
    assert not faults, f"{arch} ptx/{source}:\n" + "\n".join(faults)


def test_the_table_holds_nothing_else(recorded: Table) -> None:
    for arch in ARCHS:
        keys = {v.key for k in ALL_KERNELS if arch in k.archs for v in k.variants()}
        assert set(recorded.registers[arch]) <= keys, f"{arch}: stale entries; {REFRESH}"
    assert set(recorded.registers) == set(ARCHS)


def test_no_source_is_undeclared() -> None:
    root = Builder(ARCHS[0]).root
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*.*") if p.suffix in (".cu", ".ptx")) == SOURCES


def test_variant_keys_are_unique() -> None:
    keys = [v.key for k in ALL_KERNELS for v in k.variants()]
    assert len(keys) == len(set(keys))
