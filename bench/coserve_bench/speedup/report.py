"""What was measured, as figures to keep: one row per way, division and batch size."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from pydantic import TypeAdapter

from coserve_bench.speedup.devices import Devices
from coserve_bench.speedup.family import Division, Family
from coserve_bench.speedup.measure import Measured, Samples
from coserve_bench.speedup.ways import ONE_DEVICE, OPENVINO, Plan


@dataclass(frozen=True)
class Quartiles:
    """First quartile, median and third."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """Of some values, interpolated."""
        return cls(*(float(value) for value in np.percentile(values, [25, 50, 75])))


@dataclass(frozen=True)
class Network:
    """A division, as the report describes it; multiply-adds and parameters are those of all members."""

    split: int
    precision: str
    ensemble: str
    members: tuple[str, ...]
    multiply_adds: int
    top1: float | None

    @classmethod
    def of(cls, division: Division) -> "Network":
        """Describe a division."""
        names = division.ensemble.provenance.get("member_networks") or [
            member.name for member in division.ensemble.members
        ]
        return cls(
            division.split,
            division.precision,
            division.ensemble.name,
            tuple(names),
            division.multiply_adds,
            division.top1,
        )


@dataclass(frozen=True)
class Row:
    """One way to run one division at one batch size.

    Attributes:
        devices: that work at once.
        repeats: that were timed.
        ms: milliseconds from the batch to the mean of the members' logits.
        images_per_s: at the median.
        overlap: sum of the members' durations / time from first start to last end.
        peak_fraction: two operations per multiply-add, per second, over what as many devices do at most.
        memory_mib: that a process of its own grows by.
        speedup: over the large network on one device, of medians.
        ideal_speedup: `devices` × multiply-adds of the large network / those of all members.
        floor_ms: the members' time in turn on one device / `devices`: were sharing perfect.
    """

    engine: str
    precision: str
    batch_size: int
    split: int
    way: str
    devices: int
    repeats: int
    ms: Quartiles
    images_per_s: float
    overlap: Quartiles
    peak_fraction: float
    memory_mib: float | None
    speedup: float
    ideal_speedup: float
    floor_ms: float


@dataclass(frozen=True)
class Report:
    """Everything that was measured of a family.

    Attributes:
        machine: what it was measured on.
        other_work: cores that other processes took meanwhile; figures are worth something where it is near 0.
        peak_gflops: fp32, of one device and all.
        missing: what was asked for and could not be had.
        complete: whether every row is there and has its repeats; else Ctrl-C came before.
    """

    network: str
    machine: Mapping[str, str | int]
    other_work: float | None
    peak_gflops: Mapping[str, float]
    networks: tuple[Network, ...]
    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    complete: bool = True

    def to_json(self) -> dict[str, object]:
        """Everything as JSON takes it."""
        return asdict(self)

    @classmethod
    def read(cls, file: Path) -> "Report":
        """Read back a file of what `to_json` gave.

        Raises:
            pydantic.ValidationError: it is not that.
        """
        report: Report = TypeAdapter(cls).validate_json(file.read_bytes())
        return report

    @property
    def runners(self) -> list[tuple[str, str]]:
        """Engines and precisions; of each pair the speedups are its own."""
        return list(dict.fromkeys((row.engine, row.precision) for row in self.rows))

    @property
    def batch_sizes(self) -> list[int]:
        """In ascending order."""
        return sorted({row.batch_size for row in self.rows})

    @property
    def top1(self) -> dict[tuple[str, int], float]:
        """Accuracies by precision and split, of the precisions in which that of every network is known."""
        unknown = {one.precision for one in self.networks if one.top1 is None}
        return {
            (one.precision, one.split): one.top1
            for one in self.networks
            if one.top1 is not None and one.precision not in unknown
        }

    def of(self, engine: str, precision: str, batch_size: int) -> list[Row]:
        """The rows that can be compared with each other."""
        case = (engine, precision, batch_size)
        return [row for row in self.rows if (row.engine, row.precision, row.batch_size) == case]


def describe_machine(devices: Devices, engines: Sequence[str]) -> dict[str, str | int]:
    """Where figures come from: processor, devices and versions."""
    machine: dict[str, str | int] = {
        "processor": _processor(),
        "devices": devices.kind,
        "count": devices.count,
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
    }
    if OPENVINO in engines:
        machine["openvino"] = version("openvino")
    return machine


def make_report(
    family: Family,
    machine: Mapping[str, str | int],
    other_work: float | None,
    peak: Mapping[str, float],
    measured: Measured,
    memory: Mapping[Plan, Mapping[int, float | None]],
    missing: Sequence[str],
) -> Report:
    """Put figures together.

    Args:
        machine: of `describe_machine`.
        other_work: cores of it that others took.
        peak: GFLOP/s of one device and of all.
        measured: at least one sample.
        memory: MiB by plan and batch size.
        missing: what could not be had, besides what the family lacks.
    """
    # Turns begin with these, so that they are there of everything that Ctrl-C left.
    alone = {
        _of(one): float(np.median(one.milliseconds)) for one in measured.samples if one.plan.way == ONE_DEVICE
    }
    large = {division.precision: division for division in family.divisions if division.split == 1}
    rows = []
    for one in measured.samples:
        plan, division, size = one.plan, one.plan.division, one.batch_size
        devices, ms = plan.devices_used, Quartiles.of(one.milliseconds)
        in_turn, of_large = alone[_of(one)], alone[_of(one)._replace(split=1)]
        share = peak["one_device"] * devices if devices < plan.devices.count else peak["all_devices"]
        rows.append(
            Row(
                *_of(one),
                way=plan.way,
                devices=devices,
                repeats=len(one.milliseconds),
                ms=ms,
                images_per_s=1000 * size / ms.median,
                overlap=Quartiles.of(one.overlaps),
                peak_fraction=2 * division.multiply_adds * size / ms.median / 1e6 / share,
                memory_mib=memory[plan][size],
                speedup=of_large / ms.median,
                ideal_speedup=devices * large[division.precision].multiply_adds / division.multiply_adds,
                floor_ms=in_turn / devices,
            )
        )
    failed = (f"{precision}, {engine}: {why}" for (engine, precision), why in measured.failed.items())
    return Report(
        family.network,
        machine,
        other_work,
        peak,
        tuple(map(Network.of, family.divisions)),
        tuple(rows),
        (*missing, *family.missing, *failed),
        measured.complete,
    )


class _Case(NamedTuple):
    """What is run, whatever the way."""

    engine: str
    precision: str
    batch_size: int
    split: int


def _of(samples: Samples) -> _Case:
    division = samples.plan.division
    return _Case(samples.plan.engine, division.precision, samples.batch_size, division.split)


def _processor() -> str:
    """The model's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
