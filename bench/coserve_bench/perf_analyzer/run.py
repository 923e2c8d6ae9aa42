"""One run of NVIDIA's perf_analyzer
(https://github.com/triton-inference-server/perf_analyzer/blob/main/docs/cli.md)."""

import base64
import csv
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coserve_bench.errors import BenchError

WINDOWS = 3
FETCHED = Path(".perf_analyzer/perf_analyzer")
"""Where `make perf-analyzer` puts it."""


@dataclass(frozen=True)
class Target:
    """Who answers, and in which protocol.

    Attributes:
        address: `host:port`.
        protocol: `"grpc"` or `"http"`.
        headers: `Name: value`, sent with every request.
    """

    address: str
    protocol: str
    model: str
    version: str = ""
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Load:
    """What is sent: `concurrency` requests at a time, each of `batch_size` images.

    Attributes:
        requests: at least as many are answered in each of `WINDOWS` windows, whose mean is reported.
    """

    concurrency: int
    batch_size: int
    requests: int


@dataclass(frozen=True)
class Latencies:
    """As a client sees them: images per second, and milliseconds per request."""

    images_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def find_program(binary: Path | None) -> Path:
    """The program given, by default what `make perf-analyzer` left, or else on PATH.

    Raises:
        BenchError: it is not there, or none that can be run.
    """
    usual = FETCHED if FETCHED.exists() else Path(shutil.which("perf_analyzer") or "perf_analyzer")
    found = binary or usual
    if not found.is_file() or not os.access(found, os.X_OK):
        why = "cannot be run" if found.exists() else "is not there"
        raise BenchError(f"{found} {why}: run make perf-analyzer, or give --binary")
    return found.resolve()


class PerfAnalyzer:
    """The program, and images for it to send; a context manager."""

    def __init__(self, program: Path, input_name: str, shape: tuple[int, ...]) -> None:
        """Prepare to send images.

        Args:
            program: as `find_program` gives it.
            input_name, shape: of one image's tensor, FP32.
        """
        self._program = program
        self._image = {input_name: {"b64": _random_image(shape)}}

    def __enter__(self) -> "PerfAnalyzer":
        self._place = tempfile.TemporaryDirectory(prefix="coserve-bench-")
        self._folder = Path(self._place.name)
        (self._folder / "input.json").write_text(json.dumps({"data": [self._image]}))
        return self

    def __exit__(self, *_: object) -> None:
        self._place.cleanup()

    def run(self, targets: Sequence[Target], load: Load) -> list[Latencies]:
        """Load all targets at the same time, each in full.

        Raises:
            BenchError: perf_analyzer failed; the text has its last line.
        """
        with ExitStack() as stack:
            runs = []
            for target in targets:
                process = stack.enter_context(self._start(target, load))
                stack.callback(process.kill)
                runs.append((target, process))
            return [self._latencies(target, process) for target, process in runs]

    def _start(self, target: Target, load: Load) -> "subprocess.Popen[str]":
        command = [
            *(str(self._program), "-m", target.model, "-u", target.address, "-i", target.protocol),
            *("--input-data", str(self._folder / "input.json"), "-b", str(load.batch_size)),
            *("--concurrency-range", str(load.concurrency), "--measurement-mode", "count_windows"),
            *("--measurement-request-count", str(load.requests)),
            # Every spread passes for stable: it is the machine's, and longer measurements show it no less.
            *("--stability-percentage", "1000000", "--max-trials", str(WINDOWS)),
            *("-f", str(self._result(target))),
            *(("-x", target.version) if target.version else ()),
            *(part for header in target.headers for part in ("-H", header)),
        ]
        libraries = [str(self._program.parent / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
        self._result(target).unlink(missing_ok=True)
        return subprocess.Popen(  # noqa: S603  # the user's own program
            command,
            env=os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Ctrl-C in a terminal would reach it too, after which it may wait forever.
            start_new_session=True,
        )

    def _latencies(self, target: Target, process: "subprocess.Popen[str]") -> Latencies:
        output, _ = process.communicate()
        result = self._result(target)
        if process.returncode or not result.exists():
            last = (output.strip().splitlines() or ["it printed nothing"])[-1].strip()
            raise BenchError(f"perf_analyzer cannot measure {target.model} at {target.address}: {last}")
        with result.open(newline="") as file:
            row = next(csv.DictReader(file))
        return Latencies(
            float(row["Inferences/Second"]), *(float(row[f"p{p} latency"]) / 1000 for p in (50, 95, 99))
        )

    def _result(self, target: Target) -> Path:
        return self._folder / f"{target.model}.csv"


def _random_image(shape: tuple[int, ...]) -> str:
    """Normally distributed values as a normalised image has; perf_analyzer's own random ones include NaN."""
    values = np.random.default_rng(0).normal(size=shape).astype("<f4")
    return base64.b64encode(values.tobytes()).decode()
