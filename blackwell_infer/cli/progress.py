"""Progress bars on standard error, shown only on a terminal."""
from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bars(AbstractContextManager["Bars"]):
    """A `log.Progress` that draws one bar per stage while the context is open; nothing if stderr is no terminal."""

    def __init__(self) -> None:
        self.shown: Progress | None = None
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"),
                       TimeRemainingColumn())
            self.shown = Progress(*columns, console=Console(stderr=True), transient=True)
            self.shown.start()
        return self

    def __call__(self, stage: str, done: int, total: int, unit: str) -> None:
        if self.shown is None:
            return
        text = amount(done, total, unit)
        if stage not in self.tasks:
            self.tasks[stage] = self.shown.add_task(stage, total=total or None, amount=text)
        self.shown.update(self.tasks[stage], completed=done, total=total or None, amount=text)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.shown is not None:
            self.shown.stop()
            self.shown = None


def amount(done: int, total: int, unit: str) -> str:
    """How far a stage is: "1.2 of 4.6 GiB", "3 of 17 kernels", or the first figure alone if the total is unknown."""
    if unit != "bytes":
        return f"{done} of {total} {unit}" if total else f"{done} {unit}"
    return f"{size(done)} of {size(total)}" if total else size(done)


def size(count: int) -> str:
    """A byte count for people: 512 B, 1.2 MiB, 4.6 GiB."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
