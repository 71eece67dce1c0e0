"""The figures of a benchmark: as plain data, which JSON holds, and as tables for people."""
from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

import msgspec

from blackwell_infer.engine.profile import Bandwidth, Phase, Profile

LEFT = {"model", "device", "dtype", "test", "kernel", "shape"}
"""Columns of words"""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure. `rate` is the median of `rates`, tokens per second of all streams; `why`: it was not measured.

    `seconds` pass before the first token of a prompt, or in the median decode step. Of decoding: the bytes that a step
    in the middle moves at least, and how much of the bandwidth they are at `rate`.
    """

    test: str
    tokens: int
    depth: int
    batch: int
    rate: float | None = None
    rates: tuple[float, ...] = ()
    seconds: float | None = None
    step_bytes: int | None = None
    roofline_share: float | None = None
    drafted: int = 0
    """guesses that were checked"""
    accepted: int = 0
    """guesses that held"""
    why: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was measured of one model on one device."""

    model: str
    device: str
    dtype: str
    load_seconds: float
    peak_host_bytes: int
    weight_bytes: int
    repeat: int
    bandwidth: Bandwidth | None
    rows: tuple[Row, ...]
    profiles: tuple[Profile, ...]
    profiled_arch: str
    forced: float | None = None
    """share of guesses that were taken to hold, whatever they were; answers meant nothing"""


class Table(msgspec.Struct, frozen=True):
    """Cells as text under a title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def print_report(report: Report, out: TextIO | None = None) -> None:
    """Tables on a terminal, aligned text elsewhere."""
    target = sys.stdout if out is None else out
    for line in summary(report):
        print(line, file=target)
    for table in (figure_table(report), *(phase_table(profile, report) for profile in report.profiles)):
        print(file=target)
        if target.isatty():
            print_rich(table, target)
        else:
            target.write(plain(table))


def summary(report: Report) -> list[str]:
    """Lines about loading, and the bandwidth."""
    lines = [f"loaded in {report.load_seconds:.2f} s; {gigabytes(report.weight_bytes)} of weights; peak host memory "
             f"{report.peak_host_bytes / 2**30:.2f} GiB beyond the page cache"]
    if report.bandwidth is not None:
        how = f"measured over {gigabytes(report.bandwidth.nbytes)}" if report.bandwidth.nbytes else "as given"
        lines.append(f"bandwidth {report.bandwidth.rate / 1e12:.3f} TB/s, {how}")
    if report.forced is not None:
        lines.append(f"guesses were taken to hold with a chance of {report.forced:g} each, whatever they were")
    return lines


def figure_table(report: Report) -> Table:
    """One row for each figure; what became of guesses, if there were any."""
    columns: tuple[str, ...] = ("model", "device", "dtype", "test", "depth", "batch", "tok/s", "range", "ms", "GB/step",
                                "roofline")
    rows: list[tuple[str, ...]] = [(report.model, report.device, report.dtype, *cells(row)) for row in report.rows]
    if any(row.drafted for row in report.rows):
        columns = (*columns, "accepted")
        held = [f"{row.accepted} of {row.drafted}" if row.drafted else "" for row in report.rows]
        rows = [(*line, said) for line, said in zip(rows, held, strict=True)]
    return Table(f"medians of {report.repeat}", columns, tuple(rows))


def cells(row: Row) -> tuple[str, ...]:
    """What is said of one figure. `ms`: to the first token, or of a step."""
    name = f"{row.test} {row.tokens}"
    if row.rate is None:
        return name, str(row.depth), str(row.batch), "-", row.why, "", "", ""
    reach = f"{number(min(row.rates))}..{number(max(row.rates))}"
    return (name, str(row.depth), str(row.batch), number(row.rate), reach,
            "" if row.seconds is None else f"{1e3 * row.seconds:.3f}",
            "" if row.step_bytes is None else f"{row.step_bytes / 1e9:.3f}", percent(row.roofline_share))


def phase_table(profile: Profile, report: Report) -> Table:
    """One decode step: its phases, their sum, the whole step, and the gap between the two."""
    bandwidth = report.bandwidth
    peak = None if bandwidth is None else bandwidth.rate
    total = profile.cost.nbytes
    lines = [phase_cells(phase, peak) for phase in profile.phases]
    launches = str(sum(phase.launches for phase in profile.phases))
    lines.append(("sum of the phases", "", "", launches, micro(profile.kernels_us), *rates(total, profile.kernels_us,
                                                                                          peak)))
    if profile.step_us is not None:
        lines.append(("the whole step", "", "", launches, micro(profile.step_us), *rates(total, profile.step_us, peak)))
        lines.append(("gap", "", "", "", micro(profile.gap_us), "", "", ""))
    longest, count = max(profile.lengths), len(profile.lengths)
    return Table(f"one decode step of {count} {'row' if count == 1 else 'rows'} with {longest} keys, kernels for "
                 f"{report.profiled_arch}",
                 ("kernel", "shape", "grid", "launches", "us", "MB", "GB/s", "roofline"), tuple(lines))


def phase_cells(phase: Phase, peak: float | None) -> tuple[str, ...]:
    grid = "x".join(map(str, phase.grid)) if any(phase.grid) else ""
    return (phase.kernel, phase.shape, grid, str(phase.launches), micro(phase.us),
            *rates(phase.cost.nbytes, phase.us, peak))


def rates(nbytes: int, us: float | None, peak: float | None) -> tuple[str, str, str]:
    """Megabytes, gigabytes per second, and their share of the bandwidth."""
    speed = None if not us else nbytes / us * 1e6
    share = None if speed is None or peak is None else speed / peak
    return f"{nbytes / 1e6:.3f}", "" if speed is None else f"{speed / 1e9:.0f}", percent(share)


def number(value: float) -> str:
    """A speed with four digits or more."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def micro(us: float | None) -> str:
    return "" if us is None else f"{us:.1f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.3f} GB"


def plain(table: Table) -> str:
    """Aligned columns, two spaces apart."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    return "".join(f"{line}\n" for line in (table.title, *(aligned(table.columns, line, widths) for line in lines)))


def aligned(columns: Sequence[str], line: Iterable[str], widths: Sequence[int]) -> str:
    """One line; numbers to the right."""
    parts = (text.ljust(width) if column in LEFT else text.rjust(width)
             for column, text, width in zip(columns, line, widths, strict=True))
    return "  ".join(parts).rstrip()


def print_rich(table: Table, out: TextIO) -> None:
    """A drawn table as wide as the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn

    drawn = Drawn(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        drawn.add_column(column, justify="left" if column in LEFT else "right", overflow="fold")
    for line in table.rows:
        drawn.add_row(*line)
    Console(file=out, markup=False).print(drawn)
