"""NVIDIA's load generator, which `make test` fetches."""

import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".perf_analyzer"


def perf_analyzer() -> Path:
    """Return the program; if it is missing, fail the test, or skip it where the program is not available."""
    binary = FOLDER / "perf_analyzer"
    missing = FOLDER / "missing.txt"
    if not binary.exists():
        reason = missing.read_text() if missing.exists() else "no .perf_analyzer; run make perf-analyzer"
        if sys.version_info >= (3, 13):
            pytest.skip("perf_analyzer needs libraries of nvidia-pytriton, which this Python does not have")
        if reason.startswith("offline"):
            pytest.skip(reason)
        pytest.fail(reason)
    return binary


def counts(report: str) -> tuple[int, int]:
    """Return how many requests the program counted itself, and how many successes the server counted.

    The server's may be fewer: the program reads them first when its requests are under way.
    """
    (client,) = re.findall(r"^ +Request count: (\d+)$", report, re.MULTILINE)
    (server,) = re.findall(r"^ +Successful request count: (\d+)$", report, re.MULTILINE)
    return int(client), int(server)
