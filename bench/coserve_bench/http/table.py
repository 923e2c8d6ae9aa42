"""Shows a report as a table in the terminal."""

from collections.abc import Iterator

from coserve_bench.http.report import Report
from coserve_bench.http.results import BOTTLENECK, PERCENTILES, LoadResults


def table(report: Report) -> Iterator[str]:
    """Yield lines of text."""
    begun = [load for load in report.loads if load.begun]
    width = max([len(str(load.load)) for load in report.loads] + [len("mean ms")])
    yield (
        f"{report.model} version {report.version} at {report.url}: "
        f"{report.images} image{'s' * (report.images > 1)} of {report.image_bytes / 1000:.1f} kB, "
        f"{report.rounds} × {report.interval.seconds:g} s per load"
    )
    yield ""
    heads = ("answers/s", *(f"p{percent} ms" for percent in PERCENTILES), "max ms", "overhead ms", "failed")
    yield _row("load", heads, width)
    for load in begun:
        yield _row(str(load.load), _figures(load), width)
    if staged := [load for load in begun if load.stages]:
        yield ""
        yield from _breakdown(staged, width)
    notes = list(_notes(report))
    if notes:
        yield ""
        yield from notes


def _figures(load: LoadResults) -> list[str]:
    latencies = [load.latency.percentile(percent) for percent in PERCENTILES] + [load.latency.max]
    known = [f"{ms:.2f}" if load.latency else "" for ms in latencies]
    overhead = f"{load.overhead.percentile(50):.2f}" if load.overhead else ""
    return [f"{load.per_second:.1f}", *known, overhead, str(sum(load.errors.values()))]


def _breakdown(loads: list[LoadResults], width: int) -> Iterator[str]:
    """Yield lines that split the mean latency into parts, which add up."""
    names = [name for name in loads[0].stages if name != "total"]
    yield _row("mean ms", ("late", *names, "latency"), width)
    for load in loads:
        parts = [load.late.mean, *(load.stages[name].mean for name in names)]
        yield _row(str(load.load), [f"{mean:.2f}" for mean in (*parts, sum(parts))], width)


def _notes(report: Report) -> Iterator[str]:
    for load in report.loads:
        if load.errors:
            kinds = ", ".join(f"{count} × {kind}" for kind, count in load.errors.most_common())
            yield f"{load.load}: failed: {kinds}"
        if load.degraded:
            yield f"{load.load}: {load.degraded} answers lack members"
        if load.was_bottleneck:
            yield (
                f"warning: {load.load}: the load generator took {load.generator_cores:.0%} of a core, more "
                f"than {BOTTLENECK:.0%}, and may limit the figures"
            )
    begun = [load for load in report.loads if load.begun]
    if begun:
        shares = (f"{load.generator_cores:.0%} of a core ({load.load})" for load in begun)
        yield f"load generator: {', '.join(shares)}"
    if report.engine is not None and report.engine.latency:
        yield from _engine(report)
    if not report.complete:
        yield "stopped early: these are the results so far"


def _engine(report: Report) -> Iterator[str]:
    engine = report.engine
    assert engine is not None
    added = "" if report.added_ms is None else f"; the gateway adds {report.added_ms:.2f} ms"
    yield f"engine alone: p50 {engine.latency.percentile(50):.2f} ms for an image{added}"
    shares = {load.load: report.share_of_engine(load) for load in report.loads}
    reached = ", ".join(f"{share:.0%} ({load})" for load, share in shares.items() if share is not None)
    yield (
        f"engine alone, batches of the best size: {engine.best:.1f} images/s"
        + (f"; the gateway reaches {reached}, without the load generator" if reached else "")
    )


def _row(first: str, rest: "tuple[str, ...] | list[str]", width: int) -> str:
    return f"{first:<{width}}" + "".join(f"  {text:>11}" for text in rest)
