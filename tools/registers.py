"""Registers, spills and shared memory of kernels, measured by compiling them; needs no GPU.

    python tools/registers.py                                     all variants; refreshes tests/data/registers.json
    python tools/registers.py --source norm/rms_norm.cu                     one source, and its part of that table
    python tools/registers.py --source norm/rms_norm.cu --arch sm_90a       only shows them
    python tools/registers.py --source norm/rms_norm.cu -D ACT=bf16 -D TILE=4    one choice of defines, declared or not
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.compile import Builder, Usage, compiler_version
from blackwell_infer.kernels.kernel import ARCHS, Kernel, Variant

TABLE = Path(__file__).resolve().parents[1] / "tests" / "data" / "registers.json"


def show(arch: str, key: str, usage: Usage) -> None:
    print(f"{arch:8} {usage.registers:4} registers {usage.spill_bytes:5} B spilled {usage.stack_bytes:5} B stack "
          f"{usage.shared_bytes:6} B shared  {key}")


def one_choice(source: str, archs: Iterable[str], defines: list[str]) -> None:
    """Compile a source under the given NAME=VALUE defines and show all its entries."""
    pairs = tuple(sorted((name, value) for name, _, value in (text.partition("=") for text in defines)))
    for arch in archs:
        unit = Builder(arch).unit(Variant(Kernel(source, Path(source).stem, ()), pairs))
        for entry, usage in sorted(unit.usage.items()):
            show(arch, entry, usage)


def declared(variants: list[Variant], archs: Iterable[str], threads: int) -> dict[str, dict[str, int]]:
    """Compile variants and show them; registers per arch and variant key."""
    table: dict[str, dict[str, int]] = {}
    for arch in archs:
        builder = Builder(arch)
        mine = [v for v in variants if arch in v.kernel.archs]
        builder.build_many(mine, threads=threads)
        table[arch] = {}
        for v in sorted(mine, key=lambda v: v.key):
            b = builder.build(v)
            show(arch, v.key, Usage(b.registers, b.spill_bytes, b.stack_bytes, b.shared_bytes))
            table[arch][v.key] = b.registers
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="only this source, a path below ptx/")
    parser.add_argument("--arch", action="append", help="target; may be repeated; all by default")
    parser.add_argument("-D", dest="defines", action="append", default=[], metavar="NAME=VALUE", help="define")
    parser.add_argument("--threads", type=int, default=0, help="compiler threads; 0 is one per processor")
    args = parser.parse_args()
    archs = args.arch or ARCHS
    try:
        if args.defines:
            one_choice(args.source, archs, args.defines)
            return 0
        from blackwell_infer.ops.cuda.catalog import ALL_KERNELS
        kernels = [k for k in ALL_KERNELS if args.source in (None, k.source)]
        if not kernels:
            raise KernelError(f"no declared kernel uses {args.source}; name its defines with -D")
        table = declared([v for k in kernels for v in k.variants()], archs, args.threads)
    except KernelError as error:
        print(error, file=sys.stderr)
        return 1
    if not args.arch:
        version, entries = ".".join(map(str, compiler_version())), {k.entry for k in kernels}
        old = json.loads(TABLE.read_text())["registers"] if args.source else {}
        for arch, found in table.items():
            kept = {key: n for key, n in old.get(arch, {}).items() if key.partition("(")[0] not in entries}
            table[arch] = kept | found
        TABLE.write_text(json.dumps({"compiler": version, "registers": table}, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
