"""What is measured of a server: every load, with images of each kind, quiet and beside a busy process."""

import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from PIL import Image
from servers import Running, Server, ServerError

from coserve_bench.http.generator import Generator
from coserve_bench.http.images import EncodedImage
from coserve_bench.http.loads import ClosedLoop, Interval, Load, Target
from coserve_bench.http.results import LoadResults

WARM_UP = ClosedLoop(8), Interval(0, 2)
LARGE_BYTES = 1_000_000
LARGE_CONCURRENCY = 8
"""The most clients that send large images: more of them would only wait, for seconds."""
TOLERANCE = 1e-3
"""Tolerance of logits."""


@dataclass(frozen=True)
class Kind:
    """Images that are measured together.

    Attributes:
        name: name of their file or folder.
        expected: Coserve's logits of the most probable classes, for images that all servers decode alike.
    """

    name: str
    images: Sequence[EncodedImage]
    expected: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def mean_bytes(self) -> int:
        """Mean size of a file."""
        return round(sum(len(image.data) for image in self.images) / len(self.images))

    def takes(self, load: Load) -> bool:
        """Return whether a load is applied with images of this size."""
        few = isinstance(load, ClosedLoop) and load.concurrency <= LARGE_CONCURRENCY
        return few or self.mean_bytes < LARGE_BYTES

    def expect(self, running: Running, side: int) -> None:
        """Keep the logits that Coserve gives.

        Args:
            side: the shorter side of images that the networks take, in pixels. Coserve may decode a JPEG of
                twice that or more at a smaller scale, which gives slightly other logits.
        """
        for image in self.images:
            with Image.open(io.BytesIO(image.data)) as opened:
                if min(opened.size) < 2 * side:
                    self.expected[image.name] = running.ask(image)

    def check(self, running: Running) -> None:
        """Raise ServerError if a server's logits differ."""
        for image in self.images:
            if image.name in self.expected:
                check(image, running.ask(image), self.expected[image.name])

    def to_json(self) -> dict[str, Any]:
        """Return what the report says of the images."""
        return {"name": self.name, "count": len(self.images), "mean_bytes": self.mean_bytes}


def check(image: EncodedImage, logits: dict[int, float], expected: dict[int, float]) -> None:
    """Raise ServerError if the logits differ."""
    if logits.keys() != expected.keys() or any(
        abs(logits[index] - value) > TOLERANCE for index, value in expected.items()
    ):
        raise ServerError(f"answers {logits} for {image.name}, not {expected}")


@dataclass(frozen=True)
class Case:
    """A load with images of one kind, quiet or beside a busy process."""

    kind: Kind
    neighbour: bool
    results: LoadResults

    def __str__(self) -> str:
        return f"{self.results.load}, {self.kind.name}{' beside a busy process' * self.neighbour}"

    def to_json(self) -> dict[str, Any]:
        """Return the results, and what they are of."""
        return {"images": self.kind.name, "neighbour": self.neighbour, **self.results.to_json()}


class Measured:
    """Results of one server, over all rounds."""

    def __init__(self, server: Server, kinds: Sequence[Kind], loads: Sequence[Load], neighbour: bool) -> None:
        """Plan the cases.

        Args:
            neighbour: whether to measure beside a busy process too.
        """
        self.server = server
        self.kinds = kinds
        self.cases = [
            Case(kind, busy, LoadResults(load))
            for kind in kinds
            for busy in ([False, True] if neighbour else [False])
            for load in loads
            if kind.takes(load)
        ]
        self.memory_mib: list[float] = []
        self.failure: str | None = None

    def round(self, running: Running, interval: Interval) -> None:
        """Check and measure the server once.

        Raises:
            ServerError: its logits differ from Coserve's.
        """
        for kind in self.kinds:
            kind.check(running)
            bodies = [running.server.body(image) for image in kind.images]
            with Generator(Target(running.url, bodies)) as generator:
                generator.run(*WARM_UP)
                for case in self.cases:
                    if case.kind is kind:
                        _measure(case, generator, interval)
        self.memory_mib.append(running.memory_mib())

    def to_json(self) -> dict[str, Any]:
        """Return all results, or why there are none."""
        summary = {"server": self.server.name, "failure": self.failure}
        if self.failure is not None:
            return summary
        return {
            **summary,
            "version": self.server.version(),
            "memory_mib": round(median(self.memory_mib)),
            "loads": [case.to_json() for case in self.cases],
        }


def _measure(case: Case, generator: Generator, interval: Interval) -> None:
    with _busy_process(case.neighbour):
        run = generator.run(case.results.load, interval)
    if run.stopped:
        raise KeyboardInterrupt
    case.results.add(run)


@contextmanager
def _busy_process(wanted: bool) -> Iterator[None]:
    """Keep one core busy meanwhile, as other work on the machine would."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
