"""Runs NVIDIA's perf_analyzer.

Its options: https://github.com/triton-inference-server/perf_analyzer/blob/main/docs/cli.md
"""

import base64
import csv
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coserve_bench.errors import BenchError
from coserve_bench.stopping import POLL_S, check_stopped

WINDOWS = 3
"""Windows of a measurement, whose mean is reported."""


@dataclass(frozen=True)
class Target:
    """A model on a server, and the protocol to reach it with.

    Attributes:
        address: `host:port`.
        protocol: `"grpc"` or `"http"`.
        version: the model's version; empty for the newest.
        headers: `Name: value`, sent with every request.
    """

    address: str
    protocol: str
    model: str
    version: str = ""
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Load:
    """A closed-loop load.

    Attributes:
        concurrency: requests in flight.
        batch_size: images per request.
        requests: minimum number of responses in each of `WINDOWS` windows.
    """

    concurrency: int
    batch_size: int
    requests: int


@dataclass(frozen=True)
class Latencies:
    """Throughput in images per second and latencies in milliseconds per request, as a client sees them."""

    images_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


class PerfAnalyzer:
    """The program with images to send; a context manager."""

    def __init__(self, program: Path, input_name: str, shape: tuple[int, ...]) -> None:
        """Prepare images to send.

        Args:
            program: perf_analyzer, as `program.find_program` returns it.
            input_name: name of the FP32 image tensor.
            shape: its shape, without the batch.
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
        """Apply the load to all targets at the same time, in full to each of them.

        Raises:
            BenchError: perf_analyzer failed; the text ends with the last line of its output.
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
            # Accept any spread: it is the machine's, and longer measurements would not reduce it.
            *("--stability-percentage", "1000000", "--max-trials", str(WINDOWS)),
            *("-f", str(self._result(target))),
            *(("-x", target.version) if target.version else ()),
            *(part for header in target.headers for part in ("-H", header)),
        ]
        libraries = [str(self._program.parent / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
        # The proxy of the environment would be measured too, and cannot reach this machine's loopback.
        environment = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
        self._result(target).unlink(missing_ok=True)
        return subprocess.Popen(  # noqa: S603  # the user's own program
            command,
            env=environment | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Without a session of its own it would get Ctrl-C too, and might then wait forever.
            start_new_session=True,
        )

    def _latencies(self, target: Target, process: "subprocess.Popen[str]") -> Latencies:
        output = _read(process)
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


def _read(process: "subprocess.Popen[str]") -> str:
    """Wait for a process and return its output."""
    while True:
        check_stopped()
        try:
            return process.communicate(timeout=POLL_S)[0]
        except subprocess.TimeoutExpired:
            pass


def _random_image(shape: tuple[int, ...]) -> str:
    """Return normally distributed values in base64; perf_analyzer's own random values include NaN."""
    values = np.random.default_rng(0).normal(size=shape).astype("<f4")
    return base64.b64encode(values.tobytes()).decode()
