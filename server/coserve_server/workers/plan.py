"""How many workers there are, and which part of the machine and of the limits each gets."""

import socket
from pathlib import Path

from coserve_server.ensembles.repository import read_contents
from coserve_server.errors import RepositoryError, SettingsError
from coserve_server.machine.cores import usable_cores
from coserve_server.machine.plan import Slice, plan_workers
from coserve_server.settings import Settings

DIVIDED = ("max_requests", "max_connections")
"""Limits of the whole server, of which each worker needs a part."""


def plan_slices(settings: Settings) -> list[Slice]:
    """Divide the machine among the workers that the settings ask for, or that it suggests.

    Raises:
        SettingsError: there are not enough cores, or a limit is too low to be shared.
    """
    cores = usable_cores()
    count = settings.workers
    if count is not None and count > 1:
        _check(settings, count)
    if count is None and (settings.repository is None or not _has_workers()):
        count = 1
    threads = settings.member_threads
    try:
        slices = plan_workers(cores, (), count, threads=threads, gpus=settings.gpus)
        if count is None and len(slices) > 1:
            # So many if every ensemble had one member.
            assert settings.repository is not None
            sizes = _read_sizes(settings.repository)
            slices = plan_workers(cores, sizes, threads=threads, gpus=settings.gpus)
            most = min(getattr(settings, name) for name in DIVIDED)
            if len(slices) > most:
                slices = plan_workers(cores, sizes, most, threads=threads, gpus=settings.gpus)
    except ValueError as error:
        raise SettingsError([f"workers: {error}"]) from error
    return slices


def divide(settings: Settings, part: Slice, index: int, count: int) -> Settings:
    """Return the settings of one worker: its GPUs, and its part of the limits.

    Args:
        index: the worker's, from 0.
        count: number of workers.
    """
    parts = {name: _share(getattr(settings, name), index, count) for name in DIVIDED}
    shared_mib = settings.triton_shared_memory_mib
    if shared_mib:
        parts["triton_shared_memory_mib"] = max(1, _share(shared_mib, index, count))
    return settings.model_copy(update={**parts, "gpus": part.gpus, "workers": 1})


def _share(total: int, index: int, count: int) -> int:
    return total // count + (index < total % count)


def _check(settings: Settings, count: int) -> None:
    if not _has_workers():
        raise SettingsError(["workers: this system cannot hand connections over to processes; set it to 1"])
    for name in DIVIDED:
        if (limit := getattr(settings, name)) < count:
            raise SettingsError([f"workers: {count} workers cannot share {name}, which is {limit}"])


def _has_workers() -> bool:
    return hasattr(socket, "send_fds")


def _read_sizes(repository: Path) -> list[int]:
    """Return how many members the ensembles have; none of a repository that a start will complain about."""
    try:
        versions = read_contents(repository).versions.values()
    except RepositoryError:
        return [1]
    return [len(ensemble.members) for ensembles in versions for ensemble in ensembles]
