"""What networks run on: cores of this machine, streams of one GPU, or several GPUs."""

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
        cores: all that are usable.
        gpus: numbers of GPUs; empty to run on cores.
        graphs: sizes of the batches that CUDA graphs are for, where an engine uses them.
    """

    cores: Cores
    gpus: tuple[int, ...] = ()
    graphs: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """`"cores"`, `"streams"` (of one GPU) or `"gpus"`."""
        return "cores" if not self.gpus else "streams" if len(self.gpus) == 1 else "gpus"

    @property
    def one_core(self) -> Cores:
        """The first core alone."""
        return Cores(1, self.cores.ids and self.cores.ids[:1])

    @property
    def count(self) -> int:
        """How many one network can use."""
        return len(self.gpus) or self.cores.count

    def used_by(self, members: int) -> int:
        """How many devices members use that run at once."""
        if self.kind == "cores":
            budget = ThreadBudget.share(members, self.cores.count)
            return budget.lanes * budget.threads
        return members if self.kind == "streams" else min(members, len(self.gpus))


def find_devices(gpus: tuple[int, ...], batch_sizes: Sequence[int]) -> Devices:
    """The cores this process may use, or GPUs of these numbers.

    Args:
        batch_sizes: that will be run, whole or cut among all GPUs.

    Raises:
        coserve_server.errors.SettingsError: this ONNX Runtime runs nothing on GPUs.
    """
    if not gpus:
        return Devices(usable_cores())
    check_gpus()
    cuts = {len(cut) for size in batch_sizes for cut in np.array_split(np.empty(size), len(gpus))}
    return Devices(usable_cores(), gpus, tuple(sorted({*batch_sizes, *cuts} - {0})))
