"""Plots of a benchmark: decode speed over depth and over batch, as PNG files. Needs matplotlib (the extra `bench`)."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from blackwell_infer.cli.report import Report

Series = Mapping[int, list[tuple[int, float, float, float]]]
"""Lines by what they are drawn for: (x, median, least, most)"""


def draw(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write both plots; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return (save(report, folder / "decode_over_depth.png", series(report, "depth", "batch"), "tokens of context",
                 "batch {}"),
            save(report, folder / "decode_over_batch.png", series(report, "batch", "depth"), "streams", "depth {}"))


def series(report: Report, x: str, line: str) -> Series:
    """Decode speeds by one of "depth" and "batch" for each value of the other, ascending."""
    lines: dict[int, list[tuple[int, float, float, float]]] = {}
    for row in report.rows:
        if row.test == "decode" and row.rate is not None:
            place = {"depth": row.depth, "batch": row.batch}
            point = (place[x], row.rate, min(row.rates), max(row.rates))
            lines.setdefault(place[line], []).append(point)
    return {key: sorted(points) for key, points in sorted(lines.items())}


def save(report: Report, path: Path, lines: Series, x: str, label: str) -> Path:
    """One plot: medians as points, ranges as bars."""
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for key, points in lines.items():
        places, medians, least, most = zip(*points, strict=True)
        ranges = ([m - low for m, low in zip(medians, least, strict=True)],
                  [high - m for m, high in zip(medians, most, strict=True)])
        axes.errorbar(places, medians, ranges, marker="o", capsize=3, label=label.format(key))
    axes.set_title(f"{report.model}, {report.device}, {report.dtype}")
    axes.set_xlabel(x)
    axes.set_ylabel("decoded tokens per second, all streams")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if lines:
        axes.legend()
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path
