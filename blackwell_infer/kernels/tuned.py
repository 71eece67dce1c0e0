"""Choices that were measured on a GPU: `tuned/<arch>.json`, written by tools/autotune.py.

A file holds a table for each number of multiprocessors that was measured, since GPUs of one architecture differ in it.
Where there is none, launchers choose by their own model of the hardware. No choice changes a result.
"""
from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import msgspec

from blackwell_infer.errors import KernelError

FOLDER = Path(__file__).resolve().parents[1] / "tuned"


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured on one GPU. `choices` maps "kernel format N K rows" to the launcher's own numbers."""

    gpu: str
    date: str
    choices: dict[str, tuple[int, ...]]


def file_of(arch: str, folder: Path = FOLDER) -> Path:
    return folder / f"{arch}.json"


def read(arch: str, folder: Path = FOLDER) -> dict[int, Table]:
    """The tables of an architecture by their number of multiprocessors; none without a file. KernelError: damaged."""
    path = file_of(arch, folder)
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[int, Table], strict=False)
    except msgspec.MsgspecError as error:
        raise KernelError(f"{path}: {error}; run tools/autotune.py again, or remove the file") from None


def write(arch: str, tables: Mapping[int, Table], folder: Path = FOLDER) -> None:
    """Replace the file of an architecture."""
    folder.mkdir(exist_ok=True)
    ordered = {str(count): {"gpu": t.gpu, "date": t.date, "choices": dict(sorted(t.choices.items()))}
               for count, t in sorted(tables.items())}
    file_of(arch, folder).write_bytes(msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n")


@lru_cache
def choices(arch: str, sm_count: int) -> Mapping[str, tuple[int, ...]]:
    """The choices for a GPU, empty if none like it was measured."""
    table = read(arch).get(sm_count)
    return table.choices if table else {}


def key(entry: str, form: str, n: int, k: int, rows: int) -> str:
    """The name of a choice."""
    return f"{entry} {form} {n} {k} {rows}"
