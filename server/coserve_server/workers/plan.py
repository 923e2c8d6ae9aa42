"""How many workers there are, and which part of the machine and of the limits each gets."""

import logging
import socket
from collections.abc import Sequence
from pathlib import Path

from coserve_server.engines.embedded.loading import loading_bytes
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.repository import read_contents
from coserve_server.errors import RepositoryError, SettingsError
from coserve_server.machine.cores import usable_cores
from coserve_server.machine.memory import available_bytes
from coserve_server.machine.plan import Slice, plan_workers
from coserve_server.settings import Settings

logger = logging.getLogger(__name__)

DIVIDED = ("max_requests", "max_connections")
"""Limits of the whole server, of which each worker needs a part."""
PROCESS_BYTES = 256 * 2**20
"""Memory of a worker besides its networks: 100 MiB for Python and the libraries, and requests in progress."""
UNLIMITED = 2**62


def plan_slices(settings: Settings) -> list[Slice]:
    """Divide the machine among the workers that the settings ask for, or that its cores and memory suggest.

    Raises:
        SettingsError: there are not enough cores, or a limit is too low to be shared.
    """
    count = settings.workers
    try:
        if count is None:
            return _plan_default(settings)
        if count > 1:
            _check(settings, count)
            if settings.repository is not None:
                _warn_of_memory(settings.repository, count)
        return _plan(settings, (), count)
    except ValueError as error:
        raise SettingsError([f"workers: {error}"]) from error


def _plan_default(settings: Settings) -> list[Slice]:
    """Make as many workers as there are cores or GPUs for, but no more than memory and the limits allow."""
    one = _plan(settings, (), 1)
    # If every ensemble had one member.
    if settings.repository is None or not _has_workers() or len(_plan(settings, (1,))) == 1:
        return one
    ensembles = _read_ensembles(settings.repository)
    if not ensembles:
        return one
    slices = _plan(settings, [len(ensemble.members) for ensemble in ensembles])
    # One worker at a time loads a new version of an ensemble beside the old one.
    free = _available_bytes() - max(map(loading_bytes, ensembles))
    needed = _worker_bytes(ensembles)
    fitting = max(1, free // needed)
    if fitting < len(slices):
        logger.warning(
            "workers: %d, although there are cores for %d: each needs about %d MiB of memory, and %d MiB are "
            "left beside a reload",
            *(fitting, len(slices), needed >> 20, max(0, free) >> 20),
        )
    most = min(fitting, *(getattr(settings, name) for name in DIVIDED))
    return slices if len(slices) <= most else _plan(settings, (), most)


def _plan(settings: Settings, sizes: Sequence[int], count: int | None = None) -> list[Slice]:
    return plan_workers(usable_cores(), sizes, count, threads=settings.member_threads, gpus=settings.gpus)


def divide(settings: Settings, part: Slice, index: int, count: int) -> Settings:
    """Return the settings of one worker: its GPUs, its part of the limits, and the number of workers.

    Args:
        index: the worker's, from 0.
        count: number of workers.
    """
    parts = {name: _share(getattr(settings, name), index, count) for name in DIVIDED}
    shared_mib = settings.triton_shared_memory_mib
    if shared_mib:
        parts["triton_shared_memory_mib"] = max(1, _share(shared_mib, index, count))
    return settings.model_copy(update={**parts, "gpus": part.gpus, "workers": count})


def _share(total: int, index: int, count: int) -> int:
    return total // count + (index < total % count)


def _check(settings: Settings, count: int) -> None:
    if not _has_workers():
        raise SettingsError(["workers: this system cannot hand connections over to processes; set it to 1"])
    for name in DIVIDED:
        if (limit := getattr(settings, name)) < count:
            raise SettingsError([f"workers: {count} workers cannot share {name}, which is {limit}"])


def _warn_of_memory(repository: Path, count: int) -> None:
    needed = count * _worker_bytes(_read_ensembles(repository))
    available = _available_bytes()
    if needed > available:
        logger.warning(
            "workers: %d workers need about %d MiB of memory, but only %d MiB are available; the system may "
            "kill them",
            *(count, needed >> 20, available >> 20),
        )


def _has_workers() -> bool:
    return hasattr(socket, "send_fds")


def _read_ensembles(repository: Path) -> list[Ensemble]:
    """Return all versions of the ensembles; none of a repository that a start will complain about."""
    try:
        versions = read_contents(repository).versions.values()
    except RepositoryError:
        return []
    return [ensemble for ensembles in versions for ensemble in ensembles]


def _worker_bytes(ensembles: Sequence[Ensemble]) -> int:
    """Estimate the memory of a worker, which loads every ensemble."""
    return PROCESS_BYTES + sum(map(loading_bytes, ensembles))


def _available_bytes() -> int:
    return int(min(available_bytes(), UNLIMITED))
