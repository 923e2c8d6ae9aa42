"""Draws a report as plots: latency by S and batch size, and accuracy against latency."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coserve_bench import plot_style
from coserve_bench.speedup.report import Report, Row
from coserve_bench.speedup.table import DEVICE_NAMES
from coserve_bench.speedup.ways import ALL_DEVICES, CONCURRENT, FUSED, FUSED_PARALLEL, ONE_DEVICE

WAYS = (ONE_DEVICE, ALL_DEVICES, CONCURRENT, FUSED, FUSED_PARALLEL)
BAR = 0.8 / len(WAYS)


def draw(report: Report, folder: Path) -> list[Path]:
    """Write `latency.png`, and `accuracy.png` if accuracies are known.

    Args:
        folder: an existing folder.

    Returns:
        the files written.
    """
    files = [plot_style.save(_latency(report), folder / "latency.png")]
    if report.top1:
        files.append(plot_style.save(_accuracy(report), folder / "accuracy.png"))
    return files


def _latency(report: Report) -> Figure:
    """Draw bars of medians with quartiles by S: a row per engine and precision, a column per batch size."""
    runners = report.runners
    sizes = report.batch_sizes
    kind = str(report.machine["devices"])
    figure, panels = plt.subplots(
        len(runners),
        len(sizes),
        figsize=(1.5 + 4.5 * len(sizes), 0.5 + 4 * len(runners)),
        layout="constrained",
        squeeze=False,
    )
    for row, (engine, precision) in zip(panels, runners, strict=True):
        for axes, size in zip(row, sizes, strict=True):
            if rows := report.comparable_rows(engine, precision, size):
                _bars(axes, rows, kind)
            axes.set_title(f"{engine}, {precision}, batches of {size}")
        row[0].set_ylabel("latency (ms)")
    panels[0][-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(_title(report))
    return figure


def _bars(axes: Axes, rows: list[Row], kind: str) -> None:
    splits = sorted({row.split for row in rows})
    for index, way in enumerate(WAYS):
        of_way = [row for row in rows if row.way == way]
        if not of_way:
            continue
        positions = [splits.index(row.split) + (index - len(WAYS) // 2) * BAR for row in of_way]
        medians = [row.ms.median for row in of_way]
        axes.bar(
            positions,
            medians,
            BAR * 0.9,
            yerr=_spread(of_way),
            label=_label(way, kind),
            color=plot_style.WAYS[index],
            ecolor=plot_style.INK,
        )
        starts = [position - BAR / 2 for position in positions]
        ends = [position + BAR / 2 for position in positions]
        lines = axes.hlines(
            [row.floor_ms for row in of_way], starts, ends, plot_style.INK, "dashed", linewidth=1
        )
    lines.set_label("perfectly shared")
    axes.set_xticks(range(len(splits)), [f"S={split}" for split in splits])
    axes.grid(visible=False, axis="x")


def _accuracy(report: Report) -> Figure:
    """Draw known top-1 accuracies against latency at the smallest batch: a line through S for each way."""
    size = report.batch_sizes[0]
    kind = str(report.machine["devices"])
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    top1 = report.top1
    runners = [(engine, precision) for engine, precision in report.runners if (precision, 1) in top1]
    labels: dict[tuple[float, float], str] = {}
    for engine, precision in runners:
        for index, (way, rows) in enumerate(_lines(report.comparable_rows(engine, precision, size), kind)):
            medians = [row.ms.median for row in rows]
            accuracies = [100 * top1[precision, row.split] for row in rows]
            color = plot_style.WAYS[index] if len(runners) == 1 else None
            label = way if len(runners) == 1 else f"{way}, {engine}, {precision}"
            axes.errorbar(
                medians, accuracies, xerr=_spread(rows), marker="o", capsize=3, label=label, color=color
            )
            for row, point in zip(rows, zip(medians, accuracies, strict=True), strict=True):
                labels[point] = f"S={row.split}"
    axes.set_xlabel(f"latency (ms), batches of {size}")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_xlim(left=0)
    axes.margins(y=0.2)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    if trainings := report.different_trainings:
        # Below the legend.
        note = "\n".join(["trained differently:", *trainings])
        axes.text(1.03, 0, note, fontsize=8, va="bottom", transform=axes.transAxes)
    axes.set_title(_title(report))
    plot_style.label_points(axes, labels)
    return figure


def _lines(rows: list[Row], kind: str) -> Iterator[tuple[str, list[Row]]]:
    """Yield the label and the rows of each line.

    As in the paper, concurrent members with a device each are compared with the undivided network on one.
    """
    large = [row for row in rows if row.split == 1 and row.way == ONE_DEVICE]
    for way in (ONE_DEVICE, ALL_DEVICES, CONCURRENT):
        of_way = [row for row in rows if row.way == way]
        if way == CONCURRENT and of_way:
            yield f"concurrent; S=1 on one {DEVICE_NAMES[kind][0]}", large + of_way
        elif of_way:
            yield _label(way, kind), of_way


def _spread(rows: list[Row]) -> list[list[float]]:
    """Return the distances from the median to the quartiles."""
    return [[row.ms.median - row.ms.q1 for row in rows], [row.ms.q3 - row.ms.median for row in rows]]


def _label(way: str, kind: str) -> str:
    one, many = DEVICE_NAMES[kind]
    return {
        ONE_DEVICE: f"in turn, one {one}",
        ALL_DEVICES: f"in turn, all {many}",
        CONCURRENT: "concurrent",
        FUSED: "fused",
        FUSED_PARALLEL: "fused, branches at once",
    }[way]


def _title(report: Report) -> str:
    machine = report.machine
    return f"{report.network} on {machine['count']} {machine['devices']} of {machine['processor']}"
