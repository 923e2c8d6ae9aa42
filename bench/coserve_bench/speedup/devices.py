"""Devices that networks run on: cores of this machine, streams of one GPU, or several GPUs."""

from dataclasses import dataclass

from coserve_server.engines.embedded.lanes import ThreadBudget
from coserve_server.engines.onnxruntime.gpus import check_gpus
from coserve_server.machine.cores import Cores, usable_cores


@dataclass(frozen=True)
class Devices:
    """Devices of one kind.

    Attributes:
        cores: all usable cores.
        gpus: GPUs by number; empty to run on cores.
    """

    cores: Cores
    gpus: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """`"cores"`, `"streams"` (of one GPU) or `"gpus"`."""
        if not self.gpus:
            return "cores"
        return "streams" if len(self.gpus) == 1 else "gpus"

    @property
    def one_core(self) -> Cores:
        """The first core alone."""
        return Cores(1, self.cores.ids and self.cores.ids[:1])

    @property
    def single_threaded_cores(self) -> Cores:
        """All cores, but only one hyper-thread of each, however many members there are."""
        return Cores(self.cores.count, self.cores.ids)

    @property
    def count(self) -> int:
        """How many devices one network can use."""
        return len(self.gpus) or self.cores.count

    def used_by(self, members: int) -> int:
        """Return how many devices concurrent members use."""
        if self.kind == "cores":
            budget = ThreadBudget.share(members, self.cores.enough_for(members).nodes)
            # Threads of members that outnumber the cores share them.
            return min(budget.lanes * budget.threads, self.cores.count)
        # Of fewer members than GPUs there are copies.
        return members if self.kind == "streams" else len(self.gpus)


def find_devices(gpus: tuple[int, ...]) -> Devices:
    """Return the cores this process may use, or the GPUs with these numbers.

    Raises:
        coserve_server.errors.SettingsError: this machine lacks a GPU, or ONNX Runtime cannot use it.
    """
    if gpus:
        check_gpus(gpus)
    return Devices(usable_cores(), gpus)
