"""Compare early stopping with asking all members, on labelled images, in one run.

    coserve serve --repository model_repository
    python benchmarks/early_stopping.py --images test.zip --model wide_resnet16_4_s4

Many clients classify every image once with all members and once with early stopping, in rounds that begin
with either in turn. Printed are the throughput of each, their ratio in every round, its median, the members
per image, and the accuracy beside what the replies claim. Images lie in folders named after their classes.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvloop

from coserve_bench.http.connection import Address, Connection, post
from coserve_client import CoserveError, InputError
from coserve_client.images import images_in, images_in_zip

TIMEOUT_S = 60


@dataclass(frozen=True)
class Labelled:
    """An image file, and the name of its class."""

    data: bytes
    label: str


@dataclass(frozen=True)
class Pass:
    """What came of classifying every image once.

    Attributes:
        throughput: images per second.
        members: mean number of members averaged per image.
        stopped: fraction of images for which not all members were averaged.
        top1: fraction of images classified right.
        claimed_top1: mean accuracy that the replies claim; None if they claim none.
        p50_ms, p99_ms: latency of a request.
    """

    throughput: float
    members: float
    stopped: float
    top1: float
    claimed_top1: float | None
    p50_ms: float
    p99_ms: float


def main() -> None:
    """Measure, print, and keep the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder or zip, a folder per class")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", help="ensemble; the server's default if omitted")
    parser.add_argument("--early-stop", choices=["loaded", "always"], default="loaded")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="number of images, evenly spaced; all if omitted")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    try:
        images = read_images(arguments.images, arguments.limit)
        results = uvloop.run(measure(arguments, images))
    except (CoserveError, OSError) as error:
        sys.exit(f"error: {error}")
    report(results)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def read_images(path: Path, limit: int | None) -> list[Labelled]:
    """Read the images of a folder or a zip, each in a folder named after its class."""
    if path.is_dir():
        found = [Labelled(one.read_bytes(), one.parent.name) for one in images_in(path)]
    else:
        found = [Labelled(one.read(), one.path.parent.name) for one in images_in_zip(path)]
    if not found:
        raise InputError(f"no images in {path}")
    if limit is None or limit >= len(found):
        return found
    return [found[index * len(found) // limit] for index in range(limit)]


async def measure(arguments: argparse.Namespace, images: Sequence[Labelled]) -> dict[str, Any]:
    """Let both ways take turns."""
    modes = ["off", arguments.early_stop]
    rounds = []
    # Warm connections, caches and the processor.
    await classify(arguments, images[: 4 * arguments.clients], "off")
    for number in range(arguments.rounds):
        order = modes if number % 2 == 0 else modes[::-1]
        done = {mode: await classify(arguments, images, mode) for mode in order}
        rounds.append({mode: asdict(done[mode]) for mode in modes})
    return {
        "model": arguments.model,
        "images": len(images),
        "clients": arguments.clients,
        "early_stop": arguments.early_stop,
        "rounds": rounds,
    }


async def classify(arguments: argparse.Namespace, images: Sequence[Labelled], mode: str) -> Pass:
    """Classify every image once, with as many requests in progress as there are clients."""
    query = {"top_k": "1", "early_stop": mode} | ({"model": arguments.model} if arguments.model else {})
    url = f"{arguments.url}/v1/classify?{urlencode(query)}"
    requests = iter([(post(url, {"Content-Type": "image/*"}, one.data), one.label) for one in images])
    address = Address.from_url(url)
    latencies: list[float] = []
    members: Counter[int] = Counter()
    right: list[bool] = []
    claims: list[float] = []
    stopped = 0

    async def work(connection: Connection) -> None:
        nonlocal stopped
        for request, label in requests:
            sent = time.perf_counter()
            reply = await connection.send(request, TIMEOUT_S)
            latencies.append(1000 * (time.perf_counter() - sent))
            document = json.loads(reply.body)
            if reply.status != 200:
                raise InputError(f"status {reply.status}: {document.get('detail')}")
            (result,) = document["results"]
            members[len(result["members"])] += 1
            stopped += len(result["members"]) < len(document["members"])
            right.append(result["predictions"][0]["label"] == label)
            if document["measured_top1"] is not None:
                claims.append(document["measured_top1"])

    connections = [await Connection.open(address) for _ in range(arguments.clients)]
    began = time.perf_counter()
    try:
        await asyncio.gather(*map(work, connections))
    finally:
        for connection in connections:
            connection.close()
    seconds = time.perf_counter() - began
    latencies.sort()
    return Pass(
        throughput=len(images) / seconds,
        members=sum(size * count for size, count in members.items()) / len(images),
        stopped=stopped / len(images),
        top1=sum(right) / len(images),
        claimed_top1=statistics.fmean(claims) if claims else None,
        p50_ms=latencies[len(latencies) // 2],
        p99_ms=latencies[len(latencies) * 99 // 100],
    )


def report(results: dict[str, Any]) -> None:
    """Print the figures."""
    modes = ["off", results["early_stop"]]
    print(f"{results['images']} images, {results['clients']} clients, {len(results['rounds'])} rounds")
    names = ("images/s", "p50 ms", "p99 ms", "members", "stopped", "top-1", "claimed")
    print(f"{'':8}{''.join(f'{name:>10}' for name in names)}")
    for mode in modes:
        middle = {
            name: statistics.median(values) if None not in values else None
            for name in Pass.__dataclass_fields__
            for values in [[one[mode][name] for one in results["rounds"]]]
        }
        claimed = "unknown" if middle["claimed_top1"] is None else f"{100 * middle['claimed_top1']:.2f}%"
        print(
            f"{mode:8}{middle['throughput']:10.1f}{middle['p50_ms']:10.1f}{middle['p99_ms']:10.1f}"
            f"{middle['members']:10.3f}{100 * middle['stopped']:9.1f}%"
            f"{100 * middle['top1']:9.2f}%{claimed:>10}"
        )
    ratios = [one[modes[1]]["throughput"] / one["off"]["throughput"] for one in results["rounds"]]
    print(f"throughput ratio: {statistics.median(ratios):.3f} ({', '.join(f'{one:.3f}' for one in ratios)})")


if __name__ == "__main__":
    main()
