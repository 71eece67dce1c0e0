"""Finds the kernel sources and joins a source with what it includes into one text, ready for the compiler."""
from __future__ import annotations

import re
from pathlib import Path

from blackwell_infer.errors import KernelError

PREFIX = "ptx"
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
ONCE = re.compile(r"^\s*#\s*pragma\s+once\b")


def source_root() -> Path:
    """The folder of kernel sources: package data of an installed wheel, or `ptx/` of a checkout.

    KernelError: neither exists, so the installation is incomplete.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_ptx", package.parent / PREFIX):
        if (folder / "include").is_dir():
            return folder
    raise KernelError(f"no kernel sources in {package / '_ptx'} or {package.parent / PREFIX}: "
                      "reinstall blackwell-infer")


def read_source(name: str, root: Path) -> str:
    """The text of `root/name` with every `#include "..."` replaced by the file's text, each file once.

    A name is looked up beside the including file, then in `root/include`. #line directives keep file:line of compiler
    messages true ("ptx/norm/rms.cu(12)"); they hold no absolute path, so equal sources give equal texts everywhere.
    KernelError: a file is missing, or an include uses <...> (the project's kernels use no toolkit headers).
    """
    path = root / name
    if not path.is_file():
        raise KernelError(f"kernel source {PREFIX}/{name} does not exist below {root}")
    lines: list[str] = []
    _append(path, root, {path.resolve()}, lines)
    return "\n".join(lines) + "\n"


def read_assembly(name: str, root: Path, arch: str) -> str:
    """The text of the hand-written `root/name` (.ptx) for a target, which stands for @TARGET@ in it."""
    path = root / name
    if not path.is_file():
        raise KernelError(f"kernel source {PREFIX}/{name} does not exist below {root}")
    return path.read_text(encoding="utf-8").replace("@TARGET@", arch)


def _append(path: Path, root: Path, seen: set[Path], lines: list[str]) -> None:
    label = f"{PREFIX}/{path.relative_to(root).as_posix()}"
    lines.append(f'#line 1 "{label}"')
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match is None:
            lines.append("" if ONCE.match(line) else line)
            continue
        target = _find(match[1], match[2], path, root, f"{label}({number})")
        if target.resolve() not in seen:
            seen.add(target.resolve())
            _append(target, root, seen, lines)
        lines.append(f'#line {number + 1} "{label}"')


def _find(quote: str, name: str, path: Path, root: Path, where: str) -> Path:
    if quote == "<":
        raise KernelError(f"{where}: #include <{name}>: kernels include only files of {PREFIX}/, written in quotes")
    for folder in (path.parent, root / "include"):
        target = folder / name
        if target.is_file() and target.resolve().is_relative_to(root.resolve()):
            return root / target.resolve().relative_to(root.resolve())
    raise KernelError(f'{where}: #include "{name}": no such file beside it or in {PREFIX}/include')
