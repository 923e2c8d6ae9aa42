"""Write the results of `peers/compare.py` into docs/results/other-servers.md.

python benchmarks/peers_page.py            update the page; `make bench-peers` ends with this
python benchmarks/peers_page.py --check    fail if the page's tables differ from the JSON files
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from marked_page import markdown, page_options, update

from coserve_bench.http.results import STAGES

Results = dict[str, Any]


def main() -> None:
    """Write or check the page."""
    arguments = page_options(
        __doc__, "benchmarks/results/peers", "docs/results/other-servers.md"
    ).parse_args()
    results = [json.loads(file.read_text("utf-8")) for file in sorted(arguments.results.glob("*.json"))]
    sections = "\n\n".join("\n".join(section(one)) for one in results)
    update(arguments.page, "benchmarks/peers_page.py", [sections], arguments.check)


def section(results: Results) -> Iterator[str]:
    """Yield the conditions, a table for each kind of images, and Coserve's latency by stage."""
    engine = results["engine"]
    measured = [one for one in results["servers"] if one["failure"] is None]
    best = max(engine["images_per_s"].values())
    processor = results.get("processor") or "processor not recorded"
    yield f"## {results['model']}{limits(results)}\n"
    yield (
        f"{results['cores']} cores ({processor}) for server and load generator, "
        f"ONNX Runtime {results['onnxruntime']}, "
        f"{results['rounds']} round{'s' * (results['rounds'] > 1)} of {results['seconds']:g} s per load. "
        f"The engine alone{', without limits,' * bool(limits(results))} takes "
        f"{engine['latency_ms']['p50']:.2f} ms per image (p50) and reaches {best:.0f} "
        f"images per second at its best batch size."
    )
    for kind in results["images"]:
        for neighbour in (False, True):
            table = list(comparison(measured, kind["name"], neighbour))
            if table:
                yield f"\n{heading(kind, neighbour)}:\n"
                yield from markdown(table)
    for one in results["servers"]:
        if one["failure"] is not None:
            yield f"\n{one['server']} was not measured: {one['failure']}"
    memory = ", ".join(f"{one['server']} {one['memory_mib']} MiB" for one in measured)
    yield f"\nMemory: {memory}."
    yield "\nCoserve's mean latency by stage, in milliseconds:\n"
    yield from markdown(breakdown(loads_of(measured[0], results["images"][0]["name"], False)))


def limits(results: Results) -> str:
    """Say with what limits the servers ran."""
    cpus, shares = results.get("cpus"), results.get("cpu_shares")
    return (f", with --cpus {cpus:g}" if cpus else "") + (f", with --cpu-shares {shares}" if shares else "")


def heading(kind: Results, neighbour: bool) -> str:
    """Describe a table."""
    size = kind["mean_bytes"] / 1000
    text = f"{size / 1000:.1f} MB" if size >= 1000 else f"{size:.0f} kB" if size >= 10 else f"{size:.1f} kB"
    return f"**Images of {text}**{', beside a busy process' * neighbour}"


def loads_of(server: Results, images: str, neighbour: bool) -> list[Results]:
    """Return a server's loads with images of one kind, quiet or beside a busy process."""
    return [load for load in server["loads"] if (load["images"], load["neighbour"]) == (images, neighbour)]


def comparison(servers: list[Results], images: str, neighbour: bool) -> Iterator[list[str]]:
    """Compare all servers: a row for each, a column for each load; nothing if there was no such load."""
    rows = [loads_of(server, images, neighbour) for server in servers]
    if not rows[0]:
        return
    yield ["answers/s (p50 / p99 ms)", *(loop(load) for load in rows[0])]
    for server, loads in zip(servers, rows, strict=True):
        yield [f"{server['server']} {server['version']}", *map(cell, loads)]
    if len(rows) > 1:
        yield ["**Coserve ÷ best peer**", *(ratio(loads[0], loads[1:]) for loads in zip(*rows, strict=True))]


def loop(load: Results) -> str:
    """Name a load."""
    if load["loop"] == "open":
        return f"open loop, {load['requested_per_s']:g}/s"
    return f"{load['concurrency']} client{'s' * (load['concurrency'] > 1)}"


def cell(load: Results) -> str:
    """Return throughput, latencies and failures under one load."""
    latency = load["latency_ms"]
    if not latency:
        return "–"
    failed = sum(load["errors"].values())
    failures = f", {failed} failed" if failed else ""
    return f"{load['requests_per_s']:.1f} ({latency['p50']:.1f} / {latency['p99']:.1f}){failures}"


def ratio(own: Results, peers: Sequence[Results]) -> str:
    """Divide throughput and p99 by the best ones of all peers that answered everything."""
    sound = [peer for peer in peers if peer["latency_ms"] and not peer["errors"]]
    if not sound or not own["latency_ms"]:
        return "–"
    latency = own["latency_ms"]["p99"] / min(peer["latency_ms"]["p99"] for peer in sound)
    if own["loop"] == "open":
        return f"p99 {latency:.2f}"
    throughput = own["requests_per_s"] / max(peer["requests_per_s"] for peer in sound)
    return f"**{throughput:.2f}**, p99 {latency:.2f}"


def breakdown(loads: list[Results]) -> Iterator[list[str]]:
    """Split the mean latency into stages; the columns of a row add up to its last."""
    names = [*STAGES, "other", "outside"]
    yield ["load", "late", *names, "latency"]
    for load in loads:
        parts = [load["generator"]["late_ms"]["mean"], *(load["stages_ms"][name]["mean"] for name in names)]
        yield [load["load"], *(f"{mean:.2f}" for mean in (*parts, sum(parts)))]


if __name__ == "__main__":
    main()
