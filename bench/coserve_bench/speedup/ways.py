"""Ways to run the members of a division: one after another, concurrently, or as one graph."""

from dataclasses import dataclass

from coserve_bench.engine import ONNXRUNTIME, OPENVINO
from coserve_bench.speedup.devices import Devices
from coserve_bench.speedup.family import BF16, TF32, Division

ONE_DEVICE = "one_device"
ALL_DEVICES = "all_devices"
CONCURRENT = "concurrent"
FUSED = "fused"
FUSED_PARALLEL = "fused_parallel"

GRAPHS = "onnxruntime, CUDA graphs"
"""ONNX Runtime with a CUDA graph recorded for every batch size."""


@dataclass(frozen=True, eq=False)
class Plan:
    """One way to run a division, not loaded yet; it can be sent to another process.

    Attributes:
        way: `ONE_DEVICE` and `ALL_DEVICES` run the members one after another, `CONCURRENT` at the same time
            as the server does, `FUSED` as one graph on all devices, and `FUSED_PARALLEL` the branches of that
            graph at the same time.
    """

    way: str
    division: Division
    engine: str
    devices: Devices

    @property
    def runner(self) -> tuple[str, str]:
        """Engine and precision; only plans with the same ones are compared."""
        return self.engine, self.division.precision

    @property
    def devices_used(self) -> int:
        """How many devices work at the same time."""
        if self.way == ONE_DEVICE:
            return 1
        return self.devices.used_by(self.division.split) if self.way == CONCURRENT else self.devices.count


def plans(division: Division, engine: str, devices: Devices) -> list[Plan]:
    """Return the ways to run a division.

    The undivided network has no members to run concurrently or to fuse. Only openvino computes in bf16,
    and only GPUs in tf32; others have no plans for it.
    """
    if division.precision == BF16 and engine != OPENVINO:
        return []
    if division.precision == TF32 and not devices.gpus:
        return []
    ways = [ONE_DEVICE]
    if devices.count > 1:
        ways.append(ALL_DEVICES)
    if division.split > 1:
        ways += [CONCURRENT, FUSED]
        if engine == ONNXRUNTIME and not devices.gpus:
            ways.append(FUSED_PARALLEL)
    return [Plan(way, division, engine, devices) for way in ways]
