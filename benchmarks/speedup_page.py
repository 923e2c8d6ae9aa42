"""Write the results of `coserve bench speedup` into docs/results/performance.md, and plots next to it.

    python benchmarks/speedup_page.py            update the page; `make speedup` ends with this
    python benchmarks/speedup_page.py --check    fail if the page's tables differ from the JSON files

This script owns everything between the page's two markers.
"""

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from marked_page import ROOT, markdown, page_options, update

from coserve_bench.speedup.report import Report, Row
from coserve_bench.speedup.ways import ALL_DEVICES, CONCURRENT, ONE_DEVICE

Cells = list[str]


def main() -> None:
    """Write or check the page."""
    parser = page_options(__doc__, "benchmarks/results/speedup", "docs/results/performance.md")
    parser.add_argument(
        "--plots", type=Path, default=ROOT / "docs/images/speedup", help="folder of the plots"
    )
    arguments = parser.parse_args()
    reports = {file.stem: Report.read(file) for file in sorted(arguments.results.glob("*.json"))}
    images = {name: arguments.plots / name for name in reports}
    lines = list(section(reports, images, arguments.page.parent))
    update(arguments.page, "benchmarks/speedup_page.py", lines, arguments.check)
    if arguments.check:
        return
    for name, report in reports.items():
        from coserve_bench.speedup.plots import draw

        images[name].mkdir(parents=True, exist_ok=True)
        draw(report, images[name])
    print(f"wrote {arguments.page}: {', '.join(reports) or 'no figures yet'}")


def section(reports: dict[str, Report], images: dict[str, Path], place: Path) -> Iterator[str]:
    """Yield a table of all networks, then a section for each."""
    if not reports:
        return
    yield from markdown(summary(reports))
    for name, report in reports.items():
        machine = report.machine
        peak = report.peak_gflops
        others = "" if report.other_work is None else f" Other processes used {report.other_work:.2f} cores."
        yield f"\n### {report.network}\n"
        yield (
            f"Measured on {machine['count']} {machine['devices']} ({machine['processor']}) with ONNX Runtime "
            f"{machine['onnxruntime']}. Peak: {peak['one_device']:.0f} GFLOP/s on one, "
            f"{peak['all_devices']:.0f} on all.{others} "
            f"[All rows as JSON](../../benchmarks/results/speedup/{name}.json).\n"
        )
        for one in report.networks:
            accuracy = "" if one.top1 is None else f", top-1 {one.top1:.2%}"
            members = f"{one.split} × {one.members[0]}, {one.multiply_adds / 1e6:,.0f} M multiply-adds"
            yield f"- S={one.split} {one.precision}: {members}{accuracy}"
        yield from (f"- trained differently: {one}" for one in report.different_trainings)
        yield from (f"- not measured: {reason}" for reason in report.missing)
        yield ""
        yield from markdown(table(report))
        folder = os.path.relpath(images[name], place)
        yield f"\n![Latency by S and batch size]({folder}/latency.png)"
        if report.top1:
            yield f"\n![Accuracy against latency]({folder}/accuracy.png)"


def summary(reports: dict[str, Report]) -> Iterator[Cells]:
    """Compare concurrent members with the large network, at each report's smallest batch."""
    head = ["network", "S", "large, one device", "large, all devices", "concurrent", "overlap"]
    yield [*head, "speedup over one device", "ideal", "reached", "speedup over all devices"]
    for report in reports.values():
        for engine, precision in report.runners:
            smallest = report.comparable_rows(engine, precision, report.batch_sizes[0])
            by_way = {(row.split, row.way): row for row in smallest}
            one = by_way[1, ONE_DEVICE]
            everything = by_way.get((1, ALL_DEVICES), one)
            for row in (row for row in smallest if row.way == CONCURRENT):
                yield [
                    *(f"{report.network}, {engine} {precision}", str(row.split)),
                    *(f"{one.ms.median:.2f} ms", f"{everything.ms.median:.2f} ms", f"{row.ms.median:.2f} ms"),
                    *(f"{row.overlap.median:.2f}", f"{row.speedup:.2f}", f"{row.ideal_speedup:.2f}"),
                    *(
                        f"{row.speedup / row.ideal_speedup:.0%}",
                        f"{everything.ms.median / row.ms.median:.2f}",
                    ),
                ]


def table(report: Report) -> Iterator[Cells]:
    """Compare the ways that matter, in ms, with a row for each engine, precision, batch size and division."""
    yield ["engine", "batch", "S", "one device", "all devices", "concurrent", "overlap", "reached"]
    for (engine, precision), size in product(report.runners, report.batch_sizes):
        rows = report.comparable_rows(engine, precision, size)
        for split in sorted({row.split for row in rows}):
            by_way = {row.way: row for row in rows if row.split == split}
            together = by_way.get(CONCURRENT)
            yield [
                *(f"{engine} {precision}", str(size), str(split)),
                *(median(by_way.get(way)) for way in (ONE_DEVICE, ALL_DEVICES, CONCURRENT)),
                "" if together is None else f"{together.overlap.median:.2f}",
                "" if together is None else f"{together.speedup / together.ideal_speedup:.0%}",
            ]


def median(row: Row | None) -> str:
    """Format the median of a row that may be missing."""
    return "" if row is None else f"{row.ms.median:.2f}"


if __name__ == "__main__":
    main()
