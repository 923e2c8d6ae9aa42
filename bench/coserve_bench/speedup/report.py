"""Reports a comparison: one row of figures for each way, division and batch size."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from pydantic import TypeAdapter

from coserve_bench.engine import OPENVINO
from coserve_bench.speedup.devices import Devices
from coserve_bench.speedup.family import Division, Family
from coserve_bench.speedup.measure import Measured, Samples
from coserve_bench.speedup.ways import ONE_DEVICE, Plan
from coserve_server.machine.processor import read_processor


@dataclass(frozen=True)
class Quartiles:
    """First quartile, median and third."""

    q1: float
    median: float
    q3: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "Quartiles":
        """Compute the quartiles of some values, interpolated."""
        return cls(*(float(value) for value in np.percentile(values, [25, 50, 75])))


@dataclass(frozen=True)
class Network:
    """A division, as the report describes it.

    Attributes:
        members: names of the members' networks.
        multiply_adds: of one image through all members.
        top1: accuracy of the members' mean, a fraction; None if it is not known.
        recipe_hash: identifies the recipe it was trained with; None if it is not recorded.
        epochs: epochs it was trained for; likewise.
    """

    split: int
    precision: str
    ensemble: str
    members: tuple[str, ...]
    multiply_adds: int
    top1: float | None
    # Stored reports may lack these.
    recipe_hash: str | None = None
    epochs: int | None = None

    @classmethod
    def from_division(cls, division: Division) -> "Network":
        """Describe a division."""
        provenance = division.ensemble.provenance
        names = provenance.get("member_networks") or [member.name for member in division.ensemble.members]
        training = provenance.get("training", {})
        return cls(
            division.split,
            division.precision,
            division.ensemble.name,
            tuple(names),
            division.multiply_adds,
            division.top1,
            training.get("recipe_hash"),
            training.get("epochs"),
        )


@dataclass(frozen=True)
class Row:
    """One way to run one division at one batch size.

    Attributes:
        devices: number of devices that work at the same time.
        repeats: number of timed runs.
        ms: milliseconds from the batch to the mean of the members' logits.
        images_per_s: throughput at the median.
        overlap: sum of the members' durations / time from the first start to the last end.
        peak_fraction: operations per second, two per multiply-add, / the peak of that many devices.
        memory_mib: growth of a separate process that runs it; None if it was not measured.
        speedup: median time of the undivided network on one device / median time.
        ideal_speedup: `devices` × multiply-adds of the undivided network / multiply-adds of all members.
        floor_ms: the members' time in turn on one device / `devices`, as if they shared the work perfectly.
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
    """All measurements of a family.

    Attributes:
        machine: processor, devices and versions.
        other_work: cores that other processes used meanwhile; only figures with a value near 0 are reliable.
        peak_gflops: fp32 peak of one device and of all devices.
        missing: what was requested but is not available, and why.
        complete: whether every row is there and has its repeats; if not, Ctrl-C was pressed.
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
        """Return everything, ready for JSON."""
        return asdict(self)

    @classmethod
    def read(cls, file: Path) -> "Report":
        """Read a file that holds the JSON of a report.

        Raises:
            pydantic.ValidationError: the file holds something else.
        """
        report: Report = TypeAdapter(cls).validate_json(file.read_bytes())
        return report

    @property
    def runners(self) -> list[tuple[str, str]]:
        """Engines and precisions; a speedup compares rows with the same ones."""
        return list(dict.fromkeys((row.engine, row.precision) for row in self.rows))

    @property
    def batch_sizes(self) -> list[int]:
        """Batch sizes in ascending order."""
        return sorted({row.batch_size for row in self.rows})

    @property
    def top1(self) -> dict[tuple[str, int], float]:
        """Accuracies by precision and split, for precisions in which every network's accuracy is known."""
        unknown = {one.precision for one in self.networks if one.top1 is None}
        return {
            (one.precision, one.split): one.top1
            for one in self.networks
            if one.top1 is not None and one.precision not in unknown
        }

    @property
    def different_trainings(self) -> list[str]:
        """Recorded trainings of networks with known accuracies, with their splits; empty if all are alike."""
        splits: dict[tuple[str | None, int | None], set[int]] = {}
        for one in self.networks:
            training = (one.recipe_hash, one.epochs)
            if (one.precision, one.split) in self.top1 and any(training):
                splits.setdefault(training, set()).add(one.split)
        if len(splits) < 2:
            return []
        return [
            f"S={', '.join(map(str, sorted(own)))}: "
            f"{epochs or 'unknown'} epochs, recipe {recipe or 'unknown'}"
            for (recipe, epochs), own in splits.items()
        ]

    def comparable_rows(self, engine: str, precision: str, batch_size: int) -> list[Row]:
        """Return rows that can be compared with each other."""
        case = (engine, precision, batch_size)
        return [row for row in self.rows if (row.engine, row.precision, row.batch_size) == case]


def describe_machine(devices: Devices, engines: Sequence[str]) -> dict[str, str | int]:
    """Return the processor, devices and versions that figures depend on."""
    machine: dict[str, str | int] = {
        "processor": read_processor().model or platform.machine(),
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
    """Make a report of all figures.

    Args:
        machine: result of `describe_machine`.
        other_work: cores that other processes used.
        peak: GFLOP/s of one device and of all devices.
        measured: measurements, with at least one sample.
        memory: MiB by plan and batch size.
        missing: what else is not available, besides what the family lacks.
    """
    # One device comes first in every turn, so it was measured even if Ctrl-C ended the turn.
    one_device_ms = {
        _case(one): float(np.median(one.milliseconds))
        for one in measured.samples
        if one.plan.way == ONE_DEVICE
    }
    large = {division.precision: division for division in family.divisions if division.split == 1}
    rows = []
    for one in measured.samples:
        plan = one.plan
        division = plan.division
        size = one.batch_size
        case = _case(one)
        devices = plan.devices_used
        ms = Quartiles.from_values(one.milliseconds)
        gflops = 2 * division.multiply_adds * size / ms.median / 1e6
        share = peak["one_device"] * devices if devices < plan.devices.count else peak["all_devices"]
        rows.append(
            Row(
                *case,
                way=plan.way,
                devices=devices,
                repeats=len(one.milliseconds),
                ms=ms,
                images_per_s=1000 * size / ms.median,
                overlap=Quartiles.from_values(one.overlaps),
                peak_fraction=gflops / share,
                memory_mib=memory[plan][size],
                speedup=one_device_ms[case._replace(split=1)] / ms.median,
                ideal_speedup=devices * large[division.precision].multiply_adds / division.multiply_adds,
                floor_ms=one_device_ms[case] / devices,
            )
        )
    failed = (f"{precision}, {engine}: {why}" for (engine, precision), why in measured.failed.items())
    return Report(
        family.network,
        machine,
        other_work,
        peak,
        tuple(map(Network.from_division, family.divisions)),
        tuple(rows),
        (*missing, *family.missing, *failed),
        measured.complete,
    )


class _Case(NamedTuple):
    """A division at one batch size, in any of the ways to run it."""

    engine: str
    precision: str
    batch_size: int
    split: int


def _case(samples: Samples) -> _Case:
    division = samples.plan.division
    return _Case(samples.plan.engine, division.precision, samples.batch_size, division.split)
