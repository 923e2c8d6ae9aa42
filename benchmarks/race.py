"""Draw the race: what each member of S = 1, 2, 4 does while one photograph is classified, on one clock.

    coserve serve --repository model_repository
    COSERVE_MEMBER_THREADS=1 coserve serve --repository model_repository --port 8001
    python benchmarks/race.py --image photo.jpg    ask both servers, keep the figures, draw them
    python benchmarks/race.py                      draw the stored figures

The first server runs the undivided network on all cores and its divisions, the second one the undivided
network on one core. They take turns. The request that is drawn has the median time from the first member's
start to the last member's end.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from coserve_client import Reply

ROOT = Path(__file__).resolve().parent.parent
Results = dict[str, Any]
CONTESTANTS = (
    ("S = 1, one core", 1, 1),
    ("S = 1, all cores", 1, None),
    ("S = 2, concurrent", 2, None),
    ("S = 4, concurrent", 4, None),
)
"""Name, number of members, and the cores of each; None for all of the server's."""
LEFT, WIDTH, RIGHT = 130, 560, 100
BAR, GAP, GROUP = 18, 4, 16
TOP, BOTTOM = 46, 52
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.bold { font-weight: 600 }
.small { font-size: 12px; fill: #59636e }
.grid { stroke: #d1d9e0 }
.large { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 5 4 }
.s1 { fill: #8c959f } .s2 { fill: #0969da } .s4 { fill: #1a7f37 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .small { fill: #9198a1 } .grid { stroke: #3d444d }
  .large { stroke: #ff7b72 }
  .s1 { fill: #9198a1 } .s2 { fill: #58a6ff } .s4 { fill: #3fb950 }
}
"""


def main() -> None:
    """Measure if there is an image, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--image", type=Path, help="photograph to send; two servers must be running")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--one-core", default="http://127.0.0.1:8001", help="server with member_threads = 1")
    parser.add_argument("--network", default="wide_resnet16_4")
    parser.add_argument("--requests", type=int, default=200, help="timed requests of each ensemble")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/race.json")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images/race.svg")
    arguments = parser.parse_args()
    if arguments.image is not None:
        results = measure(arguments)
        arguments.results.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    results = json.loads(arguments.results.read_text("utf-8"))
    arguments.output.write_text("\n".join(draw(results)) + "\n", "utf-8")


def measure(arguments: argparse.Namespace) -> Results:
    """Classify the photograph with all contestants in turn; keep the median request of each."""
    from coserve_bench.speedup.devices import Devices
    from coserve_bench.speedup.report import describe_machine
    from coserve_client import Client
    from coserve_server.machine.cores import usable_cores

    content = arguments.image.read_bytes()
    replies: list[list[Reply]] = [[] for _ in CONTESTANTS]
    with Client(arguments.url) as all_cores, Client(arguments.one_core) as one_core:
        for _ in range(arguments.requests):
            for asked, (_, split, cores) in zip(replies, CONTESTANTS, strict=True):
                client = one_core if cores == 1 else all_cores
                asked.append(client.classify(content, model=f"{arguments.network}_s{split}"))
    usable = usable_cores()
    machine = describe_machine(Devices(usable), ())
    return {
        "network": arguments.network,
        "requests": arguments.requests,
        "cores": usable.count,
        "processor": machine["processor"],
        "onnxruntime": machine["onnxruntime"],
        "contestants": [
            {"name": name, "split": split, **median([reply for reply in asked if not reply.degraded])}
            for asked, (name, split, _) in zip(replies, CONTESTANTS, strict=True)
        ],
    }


def median(replies: "list[Reply]") -> Results:
    """Return the members' times of the request whose span is the median."""
    reply = sorted(replies, key=span)[len(replies) // 2]
    members = [{"start_ms": one.start_ms, "end_ms": one.end_ms} for one in reply.members]
    return {"span_ms": span(reply), "overlap": reply.overlap, "members": members}


def span(reply: "Reply") -> float:
    """Return the time from the first member's start to the last one's end, in ms."""
    return max(one.end_ms or 0.0 for one in reply.members)


def draw(results: Results) -> Iterator[str]:
    """Yield the lines of an SVG: a bar per member, and the times of the undivided network as lines."""
    races = results["contestants"]
    slowest = max(race["span_ms"] for race in races)
    scale = WIDTH / (1.05 * slowest)
    rows = sum(len(race["members"]) for race in races)
    height = TOP + rows * (BAR + GAP) + len(races) * GROUP + BOTTOM
    title = f"{results['network']}, one photograph, {results['cores']} cores"
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + RIGHT} {height}" role="img">'
    yield f"<title>{escape(title)}: {escape(summarise(races))}</title>"
    yield f"<style>{STYLE}</style>"
    yield text(LEFT, 18, title, "bold")
    bottom = height - BOTTOM + 4
    for tick in ticks(slowest):
        x = LEFT + tick * scale
        yield rule(x, TOP - 8, bottom, "grid")
        yield text(x, bottom + 15, f"{tick:g} ms", "small", "middle")
    y = TOP
    for race in races:
        members = race["members"]
        middle = y + (len(members) * (BAR + GAP) - GAP) / 2
        name, cores = race["name"].split(", ")
        yield text(LEFT - 12, middle - 1, name, "bold", "end")
        yield text(LEFT - 12, middle + 14, cores, "small", "end")
        for member in members:
            start = LEFT + member["start_ms"] * scale
            length = (member["end_ms"] - member["start_ms"]) * scale
            place = f'x="{start:.1f}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3"'
            yield f'<rect class="s{race["split"]}" {place}/>'
            y += BAR + GAP
        overlap = f"overlap {race['overlap']:.2f}" if len(members) > 1 else ""
        yield text(LEFT + WIDTH + 8, middle - 1, f"{race['span_ms']:.2f} ms", "bold")
        yield text(LEFT + WIDTH + 8, middle + 14, overlap, "small")
        if race["split"] == 1:
            yield rule(LEFT + race["span_ms"] * scale, TOP - 8, bottom, "large")
        y += GROUP
    yield text(
        LEFT,
        height - 12,
        f"Median of {results['requests']} requests each, {results['processor']}, "
        f"ONNX Runtime {results['onnxruntime']}. Dashed: the line to beat.",
        "small",
    )
    yield "</svg>"


def text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    """Return a line of text."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def rule(x: float, top: float, bottom: float, kind: str) -> str:
    """Return a vertical line."""
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'


def summarise(races: list[Results]) -> str:
    """Say in words what the picture shows."""
    return "; ".join(f"{race['name']}: {race['span_ms']:.2f} ms" for race in races)


def ticks(longest: float) -> Iterator[float]:
    """Yield about five round numbers from 0 to the longest time."""
    step = next(one for one in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if longest / one <= 7)
    for index in range(int(1.05 * longest / step) + 1):
        yield index * step


if __name__ == "__main__":
    main()
