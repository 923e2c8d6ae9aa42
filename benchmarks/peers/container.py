"""The limits on processors that `docker run` gives a container."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from tempfile import mkdtemp

from coserve_server.machine.cores import usable_cores

CONTROLLER = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 100_000
ATTEMPTS = 50
"""How often a group is removed in vain, ten times a second: its processes take a moment to end."""


class ContainerError(Exception):
    """No control group can be made; the text says why."""


@dataclass(frozen=True)
class Container:
    """Limits of a server's processes; by default none.

    Attributes:
        cpus: processor time per second, as `docker run --cpus`.
        shares: weight beside other processes, which have 1024, as `docker run --cpu-shares`.
    """

    cpus: float | None = None
    shares: int | None = None

    @property
    def cores(self) -> int:
        """Return how many cores a server can keep busy."""
        count = usable_cores().count
        return count if self.cpus is None else max(1, min(count, ceil(self.cpus)))

    @property
    def suffix(self) -> str:
        """Return an ending for the names of files; empty without limits."""
        cpus = "" if self.cpus is None else f"_cpus_{self.cpus:g}"
        return cpus + ("" if self.shares is None else f"_shares_{self.shares}")

    @contextmanager
    def prefix(self) -> Iterator[list[str]]:
        """Make a control group of version 1 (cgroups(7)), and yield what starts a command in it.

        Raises:
            ContainerError: there are no such groups here, or this process may not make one.
        """
        if self == Container():
            yield []
            return
        try:
            group = Path(mkdtemp(prefix="coserve-", dir=CONTROLLER))
            self._limit(group)
        except OSError as error:
            raise ContainerError(
                f"cannot limit processors, which takes root and cgroups v1: {error}"
            ) from error
        try:
            yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
        finally:
            _remove(group)

    def _limit(self, group: Path) -> None:
        try:
            if self.cpus is not None:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(round(self.cpus * PERIOD_US)))
            if self.shares is not None:
                (group / "cpu.shares").write_text(str(self.shares))
        # The kernel refuses a quota above that of the group around it, and less than 1 ms.
        except OSError:
            group.rmdir()
            raise


def _remove(group: Path) -> None:
    """Remove a group once its processes have ended; kill those that a server left behind."""
    for _ in range(ATTEMPTS):
        for process in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)
    print(f"{group} is left behind: its processes do not end", file=sys.stderr)
