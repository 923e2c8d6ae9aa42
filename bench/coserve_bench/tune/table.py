"""Shows a report as a table in the terminal."""

from collections.abc import Iterator

from coserve_bench.tune.choose import Report


def table(report: Report) -> Iterator[str]:
    """Yield a line for each candidate, with one image's latency and the best throughput, and the choice."""
    width = max(len(one.candidate.ensemble.name) for one in report.measured)
    yield f"{'model':{width}}  engine       precision   top-1  workers  threads  pinned  1 image    best"
    for candidate in dict.fromkeys(one.candidate for one in report.measured):
        of_candidate = [one for one in report.measured if one.candidate == candidate]
        alone = next(f"{one.batch_ms:6.2f} ms" for one in of_candidate if one.batch_size == 1)
        top = max(of_candidate, key=lambda one: one.images_per_s)
        options = candidate.options
        pinned = "yes" if options.pinned else "no"
        accuracy = "" if candidate.top1 is None else f"{candidate.top1:.2%}"
        chosen = report.chosen is not None and candidate == report.chosen.candidate
        yield (
            f"{candidate.ensemble.name:{width}}  {options.engine:11}  {candidate.precision:9}  "
            f"{accuracy:>6}  {candidate.workers:7}  {options.threads:7}  {pinned:6}  {alone}  "
            f"{top.images_per_s:.0f} images/s in batches of {top.batch_size}{'  <- chosen' if chosen else ''}"
        )
    for name, reason in report.left_out.items():
        yield f"left out: {name}, {reason}"
    yield from report.notes
    if report.chosen is None:
        yield "interrupted: nothing is chosen"
    else:
        yield from report.to_toml().splitlines()
