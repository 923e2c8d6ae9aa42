"""Write the results of `peers/compare.py` into docs/results/benchmark.md.

python benchmarks/peers_page.py            update the page; `make bench-peers` ends with this
python benchmarks/peers_page.py --check    fail if the page's tables differ from the JSON files
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marked_page import markdown, update

from coserve_bench.http.results import STAGES

ROOT = Path(__file__).resolve().parent.parent
Results = dict[str, Any]


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/peers")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/results/benchmark.md")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    results = [json.loads(file.read_text("utf-8")) for file in sorted(arguments.results.glob("*.json"))]
    sections = "\n\n".join("\n".join(section(one)) for one in results)
    update(arguments.page, "benchmarks/peers_page.py", [sections], arguments.check)


def section(results: Results) -> Iterator[str]:
    """Yield the conditions, a comparison per load, and Coserve's latency by stage."""
    engine = results["engine"]
    measured = [one for one in results["servers"] if one["failure"] is None]
    best = max(engine["images_per_s"].values())
    yield f"### {results['model']}\n"
    yield (
        f"{results['images']} images of {results['image_bytes'] / 1000:.1f} kB, "
        f"{results['cores']} cores for server and load generator, ONNX Runtime {results['onnxruntime']}, "
        f"{results['rounds']} rounds of {results['seconds']:g} s per load. The engine alone takes "
        f"{engine['latency_ms']['p50']:.2f} ms per image (p50) and reaches {best:.0f} images per second at "
        f"its best batch size."
    )
    for index, load in enumerate(measured[0]["loads"]):
        yield f"\n{loop(load)}:\n"
        yield from markdown(comparison(measured, index))
    for one in results["servers"]:
        if one["failure"] is not None:
            yield f"\n{one['server']} was not measured: {one['failure']}"
    yield "\nCoserve's mean latency by stage, in milliseconds:\n"
    yield from markdown(breakdown(measured[0]["loads"]))


def loop(load: Results) -> str:
    """Describe a load."""
    if load["loop"] == "open":
        return f"**Open loop**, {load['requested_per_s']:g} requests per second"
    count = load["concurrency"]
    return f"**Closed loop**, {count} concurrent request{'s' * (count > 1)}"


def comparison(servers: list[Results], index: int) -> Iterator[list[str]]:
    """Compare all servers under one load."""
    yield ["", "answers/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "failed", "memory MiB"]
    for server in servers:
        load = server["loads"][index]
        latency = load["latency_ms"] or {}
        yield [
            f"{server['server']} {server['version']}",
            f"{load['requests_per_s']:.1f}",
            *(f"{latency[name]:.2f}" if latency else "–" for name in ("p50", "p90", "p99", "max")),
            str(sum(load["errors"].values())),
            str(server["memory_mib"]),
        ]


def breakdown(loads: list[Results]) -> Iterator[list[str]]:
    """Split the mean latency into stages; the columns of a row add up to its last."""
    names = [*STAGES, "other", "outside"]
    yield ["load", "late", *names, "latency"]
    for load in loads:
        parts = [load["generator"]["late_ms"]["mean"], *(load["stages_ms"][name]["mean"] for name in names)]
        yield [load["load"], *(f"{mean:.2f}" for mean in (*parts, sum(parts)))]


if __name__ == "__main__":
    main()
