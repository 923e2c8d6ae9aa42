import os
from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from coserve_server.machine.cores import Cores, usable_cores
from tests.server.machine.machines import Machine, write_quota

Simulate = Callable[..., Cores]


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[object, ...], Path]:
    """Folders of machines, each written once."""
    return defaultdict(lambda: tmp_path_factory.mktemp("machine"))


@pytest.fixture
def simulate(machines: dict[tuple[object, ...], Path], monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Return a function that gives the usable cores of another machine."""

    def simulate(
        machine: Machine,
        affinity: Collection[int] | None = None,
        quota: float | None = None,
        *,
        offline: Collection[int] = (),
        bare: bool = False,
    ) -> Cores:
        every = {thread for core in range(machine.count) for thread in machine.threads(core)} - {*offline}
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: every if affinity is None else {*affinity})
        key = (machine, quota, tuple(offline), bare)
        known = key in machines
        root = machines[key]
        if not known:
            machine.write(root, offline=offline, bare=bare)
        if quota is not None:
            write_quota(root, quota)
        return usable_cores(root)

    return simulate
