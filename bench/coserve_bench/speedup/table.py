"""Shows a report as a table in the terminal."""

from collections.abc import Iterator
from itertools import product

from coserve_bench.speedup.report import Report, Row
from coserve_bench.speedup.ways import ALL_DEVICES, CONCURRENT, FUSED, FUSED_PARALLEL, ONE_DEVICE

DEVICE_NAMES = {"cores": ("core", "cores"), "streams": ("GPU", "GPUs"), "gpus": ("GPU", "GPUs")}


def describe(way: str, split: int, kind: str) -> str:
    """Describe a way in a few words.

    Args:
        kind: kind of devices, as in `Devices`.
    """
    one, many = DEVICE_NAMES[kind]
    subject = "large network" if split == 1 else "in turn"
    return {
        ONE_DEVICE: f"{subject}, one {one}",
        ALL_DEVICES: f"{subject}, all {many}",
        CONCURRENT: "concurrent",
        FUSED: "fused",
        FUSED_PARALLEL: "fused, branches at once",
    }[way]


def table(report: Report) -> Iterator[str]:
    """Yield lines of text, with a block for each engine, precision and batch size."""
    machine = report.machine
    peak = report.peak_gflops
    kind = str(machine["devices"])
    yield (
        f"{report.network} on {machine['count']} {kind} of {machine['processor']}, "
        f"ONNX Runtime {machine['onnxruntime']}"
    )
    yield f"peak {peak['one_device']:.0f} GFLOP/s on one, {peak['all_devices']:.0f} on all"
    if "openvino" in machine:
        yield f"OpenVINO {machine['openvino']}"
    if report.other_work is not None:
        yield f"other processes used {report.other_work:.2f} cores meanwhile"
    for network in report.networks:
        accuracy = "" if network.top1 is None else f", top-1 {network.top1:.2%}"
        yield (
            f"S={network.split} {network.precision}: {network.split} × {network.members[0]}, "
            f"{network.multiply_adds / 1e6:,.1f} M multiply-adds{accuracy}"
        )
    if trainings := report.different_trainings:
        yield f"trained differently: {'; '.join(trainings)}"
    for (engine, precision), size in product(report.runners, report.batch_sizes):
        rows = report.comparable_rows(engine, precision, size)
        if not rows:
            continue
        yield ""
        yield f"{engine}, {precision}, batch {size}"
        yield (
            f"{'S':>2}  {'way':<24}  {'median ms (quartiles)':>24}  {'images/s':>8}  {'overlap':>7}  "
            f"{'speedup':>7}  {'ideal':>5}  {'reached':>7}  {'floor ms':>8}  {'peak':>5}  {'MiB':>5}"
        )
        for row in rows:
            yield _line(row, kind)
    for missing in report.missing:
        yield f"not measured: {missing}"
    if not report.complete:
        yield "interrupted: rows are missing, or have fewer repeats than others"


def _line(row: Row, kind: str) -> str:
    spread = f"{row.ms.median:.2f} ({row.ms.q1:.2f}–{row.ms.q3:.2f})"
    memory = "" if row.memory_mib is None else f"{row.memory_mib:.0f}"
    return (
        f"{row.split:>2}  {describe(row.way, row.split, kind):<24}  {spread:>24}  {row.images_per_s:>8.1f}  "
        f"{row.overlap.median:>7.2f}  {row.speedup:>7.2f}  {row.ideal_speedup:>5.2f}  "
        f"{row.speedup / row.ideal_speedup:>7.0%}  {row.floor_ms:>8.2f}  "
        f"{row.peak_fraction:>5.0%}  {memory:>5}"
    )
