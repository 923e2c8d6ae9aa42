"""Devices that networks run on: cores of this machine, streams of one GPU, or several GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coserve_server.engines.embedded.lanes import ThreadBudget
from coserve_server.engines.onnxruntime.gpus import check_gpus
from coserve_server.machine.cores import Cores, usable_cores


@dataclass(frozen=True)
class Devices:
    """Devices of one kind.

    Attributes:
        cores: all usable cores.
        gpus: GPUs by number; empty to run on cores.
        graphs: batch sizes to record CUDA graphs for, if an engine uses them.
    """

    cores: Cores
    gpus: tuple[int, ...] = ()
    graphs: tuple[int, ...] = ()

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
    def count(self) -> int:
        """How many devices one network can use."""
        return len(self.gpus) or self.cores.count

    def used_by(self, members: int) -> int:
        """Return how many devices concurrent members use."""
        if self.kind == "cores":
            budget = ThreadBudget.share(members, self.cores.count)
            return budget.lanes * budget.threads
        return members if self.kind == "streams" else min(members, len(self.gpus))


def find_devices(gpus: tuple[int, ...], batch_sizes: Sequence[int]) -> Devices:
    """Return the cores this process may use, or the GPUs with these numbers.

    Args:
        batch_sizes: sizes that will be run, whole or divided among all GPUs.

    Raises:
        coserve_server.errors.SettingsError: this build of ONNX Runtime does not run on GPUs.
    """
    if not gpus:
        return Devices(usable_cores())
    check_gpus()
    parts = {len(part) for size in batch_sizes for part in np.array_split(np.empty(size), len(gpus))}
    return Devices(usable_cores(), gpus, tuple(sorted({*batch_sizes, *parts} - {0})))
