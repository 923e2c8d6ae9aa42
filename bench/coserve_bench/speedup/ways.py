"""Ways to run the members of a division: one after another, at once, or as one graph."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from coserve_bench.errors import BenchError
from coserve_bench.speedup.devices import Devices
from coserve_bench.speedup.family import BF16, Division
from coserve_server.engines.base import Images
from coserve_server.outcomes import MemberRun

ONE_DEVICE, ALL_DEVICES, CONCURRENT = "one_device", "all_devices", "concurrent"
FUSED, FUSED_PARALLEL = "fused", "fused_parallel"

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
"""The engines that run networks in a process."""
GRAPHS = "onnxruntime, CUDA graphs"
"""The first of them, every batch size recorded as a CUDA graph."""


@dataclass(frozen=True, eq=False)
class Plan:
    """One way to run a division, not yet loaded; another process can be given it.

    Attributes:
        way: `ONE_DEVICE` and `ALL_DEVICES` run the members one after another, `CONCURRENT` at once as the
            server does, `FUSED` as one graph on all devices, `FUSED_PARALLEL` the branches of that at once.
    """

    way: str
    division: Division
    engine: str
    devices: Devices

    @property
    def runner(self) -> tuple[str, str]:
        """Engine and precision, within which plans are compared."""
        return self.engine, self.division.precision

    @property
    def devices_used(self) -> int:
        """How many devices work at once."""
        if self.way == ONE_DEVICE:
            return 1
        return self.devices.used_by(self.division.split) if self.way == CONCURRENT else self.devices.count


def plans(division: Division, engine: str, devices: Devices) -> list[Plan]:
    """The ways there are: a network that is not divided has no members to run at once, or to fuse.

    None for bf16 but in openvino, which alone computes in it.
    """
    if division.precision == BF16 and engine != OPENVINO:
        return []
    ways = [ONE_DEVICE]
    if devices.count > 1:
        ways.append(ALL_DEVICES)
    if division.split > 1:
        ways += [CONCURRENT, FUSED]
        if engine == ONNXRUNTIME and not devices.gpus:
            ways.append(FUSED_PARALLEL)
    return [Plan(way, division, engine, devices) for way in ways]


@dataclass(frozen=True)
class Way:
    """A way to run a division, loaded.

    Attributes:
        start: hands over a batch; gives the members' runs, for each part that the batch was cut into.
        close: ends what `start` needs.
    """

    start: Callable[[Images], Sequence[Sequence[asyncio.Future[MemberRun]]]]
    close: Callable[[], Awaitable[None]]

    async def run(self, batch: Images) -> list[MemberRun]:
        """Answer a batch: the mean of the members' logits is part of it.

        Raises:
            BenchError: a member failed.
        """
        parts = self.start(batch)
        runs = await asyncio.gather(*chain.from_iterable(parts))
        logits = [run.logits for run in runs if run.logits is not None]
        if len(logits) < len(runs):
            raise BenchError(f"a member failed: {next(run.failure.reason for run in runs if run.failure)}")
        members = len(parts[0])
        np.concatenate([np.mean(logits[i : i + members], axis=0) for i in range(0, len(logits), members)])
        return runs


def overlap(runs: Sequence[MemberRun]) -> float:
    """Sum of durations / time from first start to last end."""
    span = max(run.end_ns for run in runs) - min(run.start_ns for run in runs)
    return sum(run.end_ns - run.start_ns for run in runs) / span
