from pathlib import Path

import pytest

from coserve_server.machine import programs


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is all of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_without_programs_nothing_is_known(path: Path) -> None:
    assert programs.list_gpus() == []
    assert programs.docker_version() is None
    assert programs.compose_version() is None


def test_gpus_are_listed(path: Path) -> None:
    put(path, "nvidia-smi", "echo 'NVIDIA H200, 143771 MiB, 570.1'; echo 'NVIDIA H200, 143771 MiB, 570.1'")
    assert programs.list_gpus() == ["NVIDIA H200, 143771 MiB, 570.1"] * 2


def test_a_program_that_fails_tells_nothing(path: Path) -> None:
    put(path, "nvidia-smi", "echo 'No devices were found'; exit 6")
    put(path, "docker", "echo; echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    assert programs.list_gpus() == []
    assert programs.docker_version() == ""
    assert programs.compose_version() is None


def test_a_program_that_hangs_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "TIMEOUT_S", 0.1)
    put(path, "docker", "exec /bin/sleep 60")
    assert programs.docker_version() == ""


def test_docker_with_an_engine_and_its_plugin(path: Path) -> None:
    put(path, "docker", '[ "$1" = version ] && echo 28.1.1 || echo 2.40.0')
    assert programs.docker_version() == "28.1.1"
    assert programs.compose_version() == "2.40.0"


def test_the_older_compose_counts(path: Path) -> None:
    put(path, "docker", "exit 1")
    put(path, "docker-compose", "echo 1.29.2")
    assert programs.compose_version() == "1.29.2"
