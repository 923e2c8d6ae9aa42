"""A report as plots: latency by S and batch size, and accuracy against latency."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coserve_cli.bench.speedup.report import Report, Row
from coserve_cli.bench.speedup.table import DEVICE_NAMES
from coserve_cli.bench.speedup.ways import ALL_DEVICES, CONCURRENT, FUSED, FUSED_PARALLEL, ONE_DEVICE

WAYS = (ONE_DEVICE, ALL_DEVICES, CONCURRENT, FUSED, FUSED_PARALLEL)
BAR = 0.8 / len(WAYS)


def draw(report: Report, folder: Path) -> list[Path]:
    """Write PNGs: `latency_<precision>.png`, and `accuracy.png` where accuracies are known.

    Returns:
        the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_save(figure, folder / name) for name, figure in _figures(report)]


def _figures(report: Report) -> Iterator[tuple[str, Figure]]:
    for precision in dict.fromkeys(row.precision for row in report.rows):
        yield f"latency_{precision}.png", _latency(report, precision)
    if all(network.top1 is not None for network in report.networks):
        yield "accuracy.png", _accuracy(report)


def _save(figure: Figure, file: Path) -> Path:
    partial = file.with_name(f".{file.name}.partial")
    figure.savefig(partial, format="png", dpi=120)
    plt.close(figure)
    return partial.rename(file)


def _latency(report: Report, precision: str) -> Figure:
    """Bars of medians with quartiles by S, a panel per batch size; dashes where sharing would be perfect."""
    sizes = sorted({row.batch_size for row in report.rows})
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(1.5 + 4.5 * len(sizes), 4.5), layout="constrained", squeeze=False
    )
    for axes, size in zip(panels[0], sizes, strict=True):
        _bars(axes, report.of(precision, size), str(report.machine["devices"]))
        axes.set_title(f"batches of {size}")
    panels[0][0].set_ylabel("latency (ms)")
    panels[0][-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.suptitle(_title(report, precision))
    return figure


def _bars(axes: Axes, rows: list[Row], kind: str) -> None:
    splits = sorted({row.split for row in rows})
    for index, way in enumerate(WAYS):
        of_way = [row for row in rows if row.way == way]
        if not of_way:
            continue
        places = [splits.index(row.split) + (index - len(WAYS) // 2) * BAR for row in of_way]
        medians = [row.ms.median for row in of_way]
        spread = [
            [row.ms.median - row.ms.q1 for row in of_way],
            [row.ms.q3 - row.ms.median for row in of_way],
        ]
        axes.bar(places, medians, BAR * 0.9, yerr=spread, label=_label(way, kind), error_kw={"linewidth": 1})
        starts, ends = ([place + side * BAR / 2 for place in places] for side in (-1, 1))
        lines = axes.hlines([row.floor_ms for row in of_way], starts, ends, "black", "dashed", linewidth=1)
    lines.set_label("perfectly shared")
    axes.set_xticks(range(len(splits)), [f"S={split}" for split in splits])
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _accuracy(report: Report) -> Figure:
    """Top-1 accuracy against latency at the smallest batch, a line per way through S."""
    size = min(row.batch_size for row in report.rows)
    kind = str(report.machine["devices"])
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    top1 = {(one.precision, one.split): 100 * (one.top1 or 0) for one in report.networks}
    precisions = list(dict.fromkeys(row.precision for row in report.rows))
    for precision in precisions:
        for way in (ONE_DEVICE, ALL_DEVICES, CONCURRENT):
            rows = [row for row in report.of(precision, size) if row.way == way]
            if not rows:
                continue
            accuracies = [top1[precision, row.split] for row in rows]
            spread = [
                [row.ms.median - row.ms.q1 for row in rows],
                [row.ms.q3 - row.ms.median for row in rows],
            ]
            label = _label(way, kind) + (f", {precision}" if len(precisions) > 1 else "")
            axes.errorbar(
                [row.ms.median for row in rows], accuracies, xerr=spread, marker="o", capsize=3, label=label
            )
            for row, accuracy in zip(rows, accuracies, strict=True):
                axes.annotate(
                    f"S={row.split}",
                    (row.ms.median, accuracy),
                    (5, 5),
                    textcoords="offset points",
                    fontsize=8,
                )
    axes.set_xlabel(f"latency (ms), batches of {size}")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(_title(report, ", ".join(precisions)))
    return figure


def _label(way: str, kind: str) -> str:
    one, many = DEVICE_NAMES[kind]
    return {
        ONE_DEVICE: f"in turn, one {one}",
        ALL_DEVICES: f"in turn, all {many}",
        CONCURRENT: "concurrent",
        FUSED: "fused",
        FUSED_PARALLEL: "fused, branches at once",
    }[way]


def _title(report: Report, precision: str) -> str:
    machine = report.machine
    return f"{report.network}, {precision}, {machine['count']} {machine['devices']} of {machine['processor']}"
