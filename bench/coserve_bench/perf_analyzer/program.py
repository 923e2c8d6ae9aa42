"""Finds NVIDIA's perf_analyzer."""

import os
import shutil
from pathlib import Path

from coserve_bench.errors import BenchError

FETCHED = Path(".perf_analyzer/perf_analyzer")
"""Where `make perf-analyzer` installs it."""


def find_program(binary: Path | None) -> Path:
    """Return the given program, or else the one that `make perf-analyzer` installed, or the one on PATH.

    Raises:
        BenchError: the program does not exist or cannot be run.
    """
    usual = FETCHED if FETCHED.exists() else Path(shutil.which("perf_analyzer") or "perf_analyzer")
    found = binary or usual
    if not found.is_file() or not os.access(found, os.X_OK):
        why = "is not executable" if found.exists() else "does not exist"
        raise BenchError(f"{found} {why}: run make perf-analyzer, or give --binary")
    return found.resolve()
