"""What does the gateway add to its engine?

One ensemble is served over HTTP by a process of its own, and run without a gateway by this one, on the same
cores and in turn:

latency      one image at a time: the median over HTTP less the engine's own. Over HTTP the image is a file to
             decode; both the file's decoding and the tensor's way through the engine are in the difference.
throughput   images per second at several numbers of requests in progress, over the engine's own at its best
             batch size. The processor time that sending and receiving took here is taken off: what the
             gateway would reach if clients were on another machine. `uncorrected` leaves it in.

    python benchmarks/gateway.py --image photo.jpg --model wide_resnet10_4_s2

Writes `gateway.json` beside this file. Measure on a machine that does nothing else.
"""

import argparse
import asyncio
import json
import re
import resource
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from served import serving

from coserve_server.engines.embedded.choice import Choice, create_engine
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.repository import read_repository
from coserve_server.machine.cores import Cores, usable_cores

ROUNDS = 5
WARM_UP = 20


class RawEngine:
    """The engine without a gateway, one batch after another."""

    def __init__(self, ensemble: Ensemble, cores: Cores) -> None:
        self.engine, self.ensemble = create_engine(Choice(), cores, {ensemble.name: ensemble}), ensemble

    async def run(self, batch_size: int) -> None:
        """Run one batch through all members."""
        how = self.ensemble.preprocessing
        batch = np.zeros((batch_size, *how.shape), np.float32)
        await asyncio.gather(*self.engine.start(self.ensemble, batch))

    async def latencies(self, count: int) -> list[float]:
        """Milliseconds of single images, one after another."""
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            await self.run(1)
            taken.append((time.perf_counter() - began) * 1000)
        return taken

    async def throughput(self, batch_size: int, seconds: float) -> float:
        """Images per second."""
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            await self.run(batch_size)
            images += batch_size
        return images / (time.perf_counter() - began)


def request(model: str, image: bytes) -> bytes:
    """One, to be sent again and again."""
    head = (
        f"POST /v1/classify?model={model} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
    )
    return head.encode() + image


def body_bytes(head: bytes) -> int:
    """How many follow the head of an answer, which must be a good one."""
    found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    if not head.startswith(b"HTTP/1.1 200") or found is None:
        raise RuntimeError(head.decode())
    return int(found[1])


def http_latencies(port: int, sent: bytes, count: int) -> list[float]:
    """Milliseconds of requests, one after another, from a client that costs as little as one can."""
    taken = []
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as answers:
        for _ in range(count):
            began = time.perf_counter()
            connection.sendall(sent)
            head = b"".join(iter(answers.readline, b"\r\n"))
            answers.read(body_bytes(head))
            taken.append((time.perf_counter() - began) * 1000)
    return taken


class Connection:
    """One of many at once."""

    def __init__(self, port: int, sent: bytes) -> None:
        self.port, self.sent = port, sent

    async def open(self) -> None:
        """Connect."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def classify(self) -> None:
        """Send one request and read its answer."""
        self.writer.write(self.sent)
        head = await self.reader.readuntil(b"\r\n\r\n")
        await self.reader.readexactly(body_bytes(head))

    def close(self) -> None:
        """Close the connection."""
        self.writer.close()


async def http_throughput(
    port: int, sent: bytes, concurrency: int, seconds: float, cores: int
) -> tuple[float, float]:
    """Images per second, as they were and with this process's share of the cores given back."""
    connections = [Connection(port, sent) for _ in range(concurrency)]
    await asyncio.gather(*(connection.open() for connection in connections))
    images, ends = 0, time.perf_counter() + seconds

    async def repeat(connection: Connection) -> None:
        nonlocal images
        while time.perf_counter() < ends:
            await connection.classify()
            images += 1

    began, spent = time.perf_counter(), processor_seconds()
    await asyncio.gather(*map(repeat, connections))
    wall, own = time.perf_counter() - began, processor_seconds() - spent
    for connection in connections:
        connection.close()
    return images / wall, images / (wall - own / cores)


def processor_seconds() -> float:
    """Of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(arguments: argparse.Namespace, ensemble: Ensemble, port: int) -> dict[str, Any]:
    """Measure both in rounds, in turn."""
    cores, sent = usable_cores(), request(ensemble.name, arguments.image.read_bytes())
    raw = RawEngine(ensemble, cores)
    await raw.latencies(WARM_UP)
    http_latencies(port, sent, WARM_UP)
    alone: list[float] = []
    served: list[float] = []
    engine: dict[int, list[float]] = {size: [] for size in arguments.batch_sizes}
    gateway: dict[int, list[tuple[float, float]]] = {number: [] for number in arguments.concurrency}
    for _ in range(ROUNDS):
        alone += await raw.latencies(arguments.requests)
        served += http_latencies(port, sent, arguments.requests)
        for size in arguments.batch_sizes:
            engine[size].append(await raw.throughput(size, arguments.seconds))
        for number in arguments.concurrency:
            gateway[number].append(await http_throughput(port, sent, number, arguments.seconds, cores.count))
    await raw.engine.close()
    by_size = {size: statistics.median(values) for size, values in engine.items()}
    best = max(by_size.values())
    p50 = {"engine": statistics.median(alone), "gateway": statistics.median(served)}
    return {
        "latency_ms": p50 | {"added": p50["gateway"] - p50["engine"]},
        "engine_images_per_s": by_size,
        "gateway_images_per_s": {
            number: {
                "uncorrected": statistics.median(rate for rate, _ in rates),
                "corrected": statistics.median(rate for _, rate in rates),
                "of_engine": statistics.median(rate for _, rate in rates) / best,
            }
            for number, rates in gateway.items()
        },
    }


def main() -> None:
    """Measure one ensemble of a repository."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="wide_resnet10_4_s2")
    parser.add_argument("--image", type=Path, required=True, help="a JPEG file, sent with every request")
    parser.add_argument("--requests", type=int, default=100, help="per round, for the latency")
    parser.add_argument("--seconds", type=float, default=2, help="per round and throughput")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    ensemble = read_repository(arguments.repository)[arguments.model]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(arguments.repository, arguments.model, Path(folder) / "log", COSERVE_ACCESS_LOG="false") as (
            port,
            _,
        ),
    ):
        result = asyncio.run(measure(arguments, ensemble, port))
    report = {
        "model": arguments.model,
        "cores": usable_cores().count,
        "onnxruntime": ort.__version__,
        "rounds": ROUNDS,
        **result,
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
