"""Traces of launches: recorded by the dry queue, kept as JSON lines, compared with a readable message."""
from __future__ import annotations

import difflib
from collections.abc import Sequence

import msgspec

from blackwell_infer.device.queue import Dim
from blackwell_infer.kernels.kernel import Value


class Launch(msgspec.Struct, frozen=True):
    """One launch, or one call of a vendor library (`entry` is then its name, grid and block are zeros).

    `args` are summaries: "float32[4,64]" of a tensor, "null", or "int 7" of a scalar.
    """

    entry: str
    defines: tuple[tuple[str, Value], ...]
    grid: Dim
    block: Dim
    smem: int
    pdl: bool
    args: tuple[str, ...]


Trace = Sequence[Launch]


def to_lines(trace: Trace) -> str:
    """JSON, one launch a line."""
    return "".join(msgspec.json.encode(launch).decode() + "\n" for launch in trace)


def from_lines(text: str) -> list[Launch]:
    """The inverse of `to_lines`."""
    return [msgspec.json.decode(line, type=Launch) for line in text.splitlines() if line]


def shape_of(launch: Launch) -> str:
    """What must depend on nothing but a step's bucket: kernel, grid, block and shared memory."""
    defines = ",".join(f"{name}={value}" for name, value in launch.defines)
    return f"{launch.entry}({defines}) grid {launch.grid} block {launch.block} smem {launch.smem}"


def same_grids(a: Trace, b: Trace) -> bool:
    """Whether two steps of one bucket launch alike, as a captured step demands; `difference` says where not."""
    return [shape_of(launch) for launch in a] == [shape_of(launch) for launch in b]


def difference(expected: Trace, actual: Trace) -> str:
    """A unified diff of two traces, three lines of context; empty if they are equal."""
    a, b = ([f"{shape_of(x)} pdl {x.pdl} args {', '.join(x.args)}" for x in trace] for trace in (expected, actual))
    return "\n".join(difflib.unified_diff(a, b, "expected", "actual", lineterm=""))
