"""Runs `coserve serve` for the soak test."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def serving(
    repository: Path, model: str, log: Path, *options: str, **settings: str
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Serve a repository on a free port, and return the port and the process.

    Args:
        model: the default model.
        log: file for the server's standard error.
        options: further options of `coserve serve`.
        settings: environment variables.

    Raises:
        RuntimeError: the server did not start; the text holds its log.
    """
    command = ["serve", "--repository", str(repository), "--default-model", model, "--port", "0", *options]
    with log.open("w") as errors:
        server = subprocess.Popen(
            [str(Path(sys.executable).with_name("coserve")), *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **settings},
        )
    assert server.stdout is not None
    try:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", next(iter(server.stdout), ""))
        if found is None:
            raise RuntimeError(f"the server did not start: {log.read_text()}")
        yield int(found[1]), server
    finally:
        server.terminate()
        server.wait(60)
        server.stdout.close()
