"""A container's limits count, not the machine's size."""

import os
from pathlib import Path

import pytest

from coserve_training.data import limits


@pytest.mark.parametrize(("cpu", "memory", "cores", "size"), [
    ("max 100000", "max", 8, 8 << 30), ("150000 100000", "1073741824", 2, 1 << 30),
    ("10000 100000", "9223372036854771712", 1, 8 << 30), (None, None, 8, 8 << 30),
])  # fmt: skip
def test_a_containers_limits_count(
    cpu: str | None,
    memory: str | None,
    cores: int,
    size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2 << 20}.get)
    for name, content in (("cpu.max", cpu), ("memory.max", memory)):
        if content is not None:
            (tmp_path / name).write_text(f"{content}\n")
    assert (limits.usable_cores(), limits.usable_bytes()) == (cores, size)
