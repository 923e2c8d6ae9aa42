"""Facts that other programs tell about the machine: NVIDIA's GPUs, and the Docker engine."""

import shutil
import subprocess

TIMEOUT_S = 10.0
"""Time for a program to answer; one that waits for a dead driver or engine may never do."""


def list_gpus() -> list[str]:
    """List NVIDIA's GPUs by number, with their names and memory, as `nvidia-smi` does; empty without it."""
    answer = _ask("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return [line.strip() for line in (answer or "").splitlines() if line.strip()]


def docker_version() -> str | None:
    """Return the version of the Docker engine; empty if only the client is there, None without a client."""
    if shutil.which("docker") is None:
        return None
    return (_ask("docker", "version", "--format", "{{.Server.Version}}") or "").strip()


def compose_version() -> str | None:
    """Return the version of Docker's Compose plugin, or of docker-compose; None without either."""
    answer = _ask("docker", "compose", "version", "--short") or _ask("docker-compose", "version", "--short")
    return answer.strip() if answer else None


def _ask(program: str, *arguments: str) -> str | None:
    """Return what a program on PATH prints; None if it is not there, fails or hangs."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603  # fixed arguments
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
