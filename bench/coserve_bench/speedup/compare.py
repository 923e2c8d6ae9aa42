"""Runs one comparison from request to report."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from coserve_bench.engine import ONNXRUNTIME, OPENVINO
from coserve_bench.errors import BenchError
from coserve_bench.progress import Progress
from coserve_bench.speedup.apart import run_apart
from coserve_bench.speedup.devices import find_devices
from coserve_bench.speedup.family import BF16, TF32, Family, exported_in, read_family
from coserve_bench.speedup.measure import Limits, measure
from coserve_bench.speedup.memory import measure_memory
from coserve_bench.speedup.other_work import OtherWork
from coserve_bench.speedup.peak import measure_peak
from coserve_bench.speedup.report import Report, describe_machine, make_report
from coserve_bench.speedup.ways import GRAPHS, Plan, plans
from coserve_bench.stopping import check_stopped
from coserve_export.parity import Precision
from coserve_server.engines.factory import precisions

NOT_AT_RANDOM = {
    "int8": "quantising needs images; use coserve export --precision int8, and give --repository",
}
"""Why networks with random weights are not available in a precision."""
NO_BF16 = {
    ONNXRUNTIME: "it cannot compute in bf16; openvino can if the processor supports it",
    GRAPHS: "it cannot compute in bf16",
    OPENVINO: "this processor does not support bf16",
}
"""Why an engine cannot compute in bf16."""


@dataclass(frozen=True)
class Request:
    """What to compare.

    Attributes:
        network: name of the network; may be None if the repository has only one.
        repository: repository with the exported network; None to export it with random weights.
        splits: numbers of members to compare with the undivided network.
        dataset: sets classes and image size of networks with random weights.
        gpus: GPUs by number; empty to run on cores.
        cuda_graphs: whether to measure with CUDA graphs too.
        limits: how long to measure.
    """

    network: str | None
    repository: Path | None
    splits: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    precisions: tuple[str, ...]
    engines: tuple[str, ...]
    dataset: str
    gpus: tuple[int, ...]
    cuda_graphs: bool
    limits: Limits


def compare(request: Request, progress: Progress | None) -> Report:
    """Measure everything that was requested.

    Raises:
        BenchError, coserve_server.errors.StartupError, coserve_export.errors.ExportError,
        coserve_training.errors.TrainingError: nothing can be measured; the text says why.
        KeyboardInterrupt: Ctrl-C was pressed before the first measurement; later it ends the measuring.
        MemoryError: there is not enough memory for the batches.
    """
    devices = find_devices(request.gpus)
    with tempfile.TemporaryDirectory(prefix="coserve-speedup-") as scratch:
        engines, no_engine = _available_engines(request)
        available, no_precision = _available_precisions(request, engines)
        request = replace(request, precisions=available)
        family = _family(request, Path(scratch), progress)
        all_plans = [
            plan
            for engine in engines
            for division in family.divisions
            for plan in plans(division, engine, devices)
        ]
        memory = _memory(all_plans, request.batch_sizes, progress)
        check_stopped()
        peak_before = measure_peak(devices)
        other_work = OtherWork()
        measured = measure(all_plans, request.batch_sizes, request.limits, progress)
        others = other_work.cores()
        peak_after = measure_peak(devices)
    peak = {what: max(peak_before[what], peak_after[what]) for what in peak_before}
    machine = describe_machine(devices, engines)
    return make_report(family, machine, others, peak, measured, memory, no_engine + no_precision)


def _available_engines(request: Request) -> tuple[list[str], list[str]]:
    """Return the requested engines that are available, and why the others are not."""
    missing = []
    if OPENVINO in request.engines:
        if request.gpus:
            missing.append(f"{OPENVINO}: it runs on cores, not on GPUs")
        elif find_spec("openvino") is None:
            missing.append(f"{OPENVINO}: it is not installed; install coserve[openvino]")
    engines = [engine for engine in request.engines if engine != OPENVINO or not missing]
    if not engines:
        raise BenchError("; ".join(missing))
    if request.cuda_graphs:
        engines.append(GRAPHS)
    return engines, missing


def _available_precisions(request: Request, engines: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the requested precisions that an engine computes in, and why other engines do not."""
    available = []
    missing = []
    for precision in request.precisions:
        reasons = [(engine, _why_not(precision, engine, request.gpus)) for engine in engines]
        unable = [f"{precision}, {engine}: {reason}" for engine, reason in reasons if reason]
        missing += unable
        if len(unable) < len(engines):
            available.append(precision)
    if not available:
        raise BenchError("; ".join(missing))
    return tuple(available), missing


def _why_not(precision: str, engine: str, gpus: Sequence[int]) -> str | None:
    """Return why an engine cannot compute fp32 networks in a precision."""
    if precision == BF16 and BF16 not in precisions(engine):
        return NO_BF16[engine]
    if precision == TF32 and not gpus:
        return "only GPUs compute in tf32; give --gpus"
    return None


def _family(request: Request, scratch: Path, progress: Progress | None) -> Family:
    repository = request.repository
    if repository is not None:
        family = read_family(repository, request.network, request.splits, request.precisions, scratch)
    else:
        family = _random_family(request, scratch, progress)
    largest = max(request.batch_sizes)
    for division in family.divisions:
        limit = division.ensemble.max_batch_size
        if limit < largest:
            raise BenchError(f"{division.ensemble.name} takes at most {limit} images, not {largest}")
    return family


def _random_family(request: Request, scratch: Path, progress: Progress | None) -> Family:
    assert request.network is not None
    wanted = [precision for precision in request.precisions if precision not in NOT_AT_RANDOM]
    missing = tuple(f"{name}: {NOT_AT_RANDOM[name]}" for name in request.precisions if name in NOT_AT_RANDOM)
    if not wanted:
        raise BenchError("; ".join(missing))
    exported = {exported_in(precision) for precision in wanted}
    ordered = [precision for precision in get_args(Precision) if precision in exported]
    repository = scratch / "repository"
    splits = sorted({1, *request.splits})
    how = (splits, ordered, request.dataset, max(request.batch_sizes))
    # In this process torch might swallow Ctrl-C, fail because of it, or abort.
    run_apart(_export, repository, request.network, *how, progress=progress)
    family = read_family(repository, request.network, splits, wanted, scratch)
    return replace(family, missing=missing)


def _export(*arguments: Any) -> None:
    # Imported here, because nothing else needs torch.
    from coserve_bench.speedup.random_weights import export_family

    export_family(*arguments)


def _memory(
    all_plans: Sequence[Plan], batch_sizes: Sequence[int], progress: Progress | None
) -> dict[Plan, dict[int, float | None]]:
    """Return the memory in MiB by plan and batch size."""
    memory = {}
    for done, plan in enumerate(all_plans, start=1):
        memory[plan] = dict(zip(batch_sizes, measure_memory(plan, batch_sizes), strict=True))
        if progress is not None:
            progress("memory", done, len(all_plans))
    return memory
