"""One comparison from request to report."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from coserve_bench.errors import BenchError
from coserve_bench.speedup.apart import Progress, run_apart
from coserve_bench.speedup.devices import find_devices
from coserve_bench.speedup.family import BF16, Family, exported_in, read_family
from coserve_bench.speedup.measure import Limits, measure
from coserve_bench.speedup.memory import measure_memory
from coserve_bench.speedup.other_work import OtherWork
from coserve_bench.speedup.peak import measure_peak
from coserve_bench.speedup.report import Report, describe_machine, make_report
from coserve_bench.speedup.ways import GRAPHS, ONNXRUNTIME, OPENVINO, Plan, plans
from coserve_export.parity import Precision
from coserve_server.engines.factory import precisions

NOT_AT_RANDOM = {
    "int8": "quantising takes images; use coserve export --precision int8, and give --repository",
}
"""Why random weights are not had in a precision."""
NO_BF16 = {
    ONNXRUNTIME: "it does not compute networks in bf16; openvino does where the processor can",
    GRAPHS: "it does not compute networks in bf16",
    OPENVINO: "this processor does not support bf16",
}
"""Why an engine has none."""


@dataclass(frozen=True)
class Request:
    """What to compare.

    Attributes:
        network: its name; may lack where the repository has one only.
        repository: where it is exported already; None exports it with random weights.
        dataset: of random weights' networks: sets classes and image size.
        gpus: numbers of GPUs; empty to run on cores.
        cuda_graphs: whether to measure with CUDA graphs too.
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
    """Measure everything asked for.

    Raises:
        BenchError, coserve_server.errors.StartupError, coserve_export.errors.ExportError,
        coserve_training.errors.TrainingError: nothing can be measured; the text says why.
        KeyboardInterrupt: before anything was measured; later Ctrl-C gives the report so far.
        MemoryError: there is too little for such batches.
    """
    devices = find_devices(request.gpus, request.batch_sizes)
    with tempfile.TemporaryDirectory(prefix="coserve-speedup-") as scratch:
        engines, missing = _engines(request)
        there, lacking = _precisions(request, engines)
        request, missing = replace(request, precisions=there), missing + lacking
        family = _family(request, Path(scratch), progress)
        all_plans = [
            plan
            for engine in engines
            for division in family.divisions
            for plan in plans(division, engine, devices)
        ]
        memory = _memory(all_plans, request.batch_sizes, progress)
        peak = measure_peak(devices)
        other_work = OtherWork()
        measured = measure(all_plans, request.batch_sizes, request.limits, progress)
        others = other_work.cores()
        again = measure_peak(devices)
    best = {what: max(peak[what], again[what]) for what in peak}
    return make_report(family, describe_machine(devices, engines), others, best, measured, memory, missing)


def _engines(request: Request) -> tuple[list[str], list[str]]:
    """Those that can be had, and why others cannot."""
    missing = []
    if OPENVINO in request.engines:
        if request.gpus:
            missing.append(f"{OPENVINO}: it runs on cores, not on GPUs")
        elif find_spec("openvino") is None:
            missing.append(f"{OPENVINO}: it is not installed; coserve[openvino] has it")
    engines = [engine for engine in request.engines if engine != OPENVINO or not missing]
    if not engines:
        raise BenchError("; ".join(missing))
    if request.cuda_graphs:
        engines.append(GRAPHS)
    return engines, missing


def _precisions(request: Request, engines: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Those that some engine computes in, and why others do not."""
    if BF16 not in request.precisions:
        return request.precisions, []
    missing = [f"{BF16}, {engine}: {NO_BF16[engine]}" for engine in engines if BF16 not in precisions(engine)]
    if len(missing) < len(engines):
        return request.precisions, missing
    there = tuple(precision for precision in request.precisions if precision != BF16)
    if not there:
        raise BenchError("; ".join(missing))
    return there, missing


def _family(request: Request, scratch: Path, progress: Progress | None) -> Family:
    repository = request.repository
    if repository is not None:
        family = read_family(repository, request.network, request.splits, request.precisions, scratch)
    else:
        family = _random_family(request, scratch, progress)
    largest = max(request.batch_sizes)
    for division in family.divisions:
        if division.ensemble.max_batch_size < largest:
            most = division.ensemble.max_batch_size
            raise BenchError(f"{division.ensemble.name} takes at most {most} images, not {largest}")
    return family


def _random_family(request: Request, scratch: Path, progress: Progress | None) -> Family:
    assert request.network is not None
    there = [precision for precision in request.precisions if precision not in NOT_AT_RANDOM]
    absent = tuple(f"{name}: {NOT_AT_RANDOM[name]}" for name in request.precisions if name in NOT_AT_RANDOM)
    if not there:
        raise BenchError("; ".join(absent))
    exported = [precision for precision in get_args(Precision) if precision in map(exported_in, there)]
    repository, splits = scratch / "repository", sorted({1, *request.splits})
    how = (splits, exported, request.dataset, max(request.batch_sizes))
    # Torch may swallow a KeyboardInterrupt, stumble over it, or abort.
    run_apart(_export, repository, request.network, *how, progress=progress)
    family = read_family(repository, request.network, splits, there, scratch)
    return replace(family, missing=absent)


def _export(*how: Any) -> None:
    # The only part that needs torch.
    from coserve_bench.speedup.random_weights import export_family

    export_family(*how)


def _memory(
    all_plans: Sequence[Plan], batch_sizes: Sequence[int], progress: Progress | None
) -> dict[Plan, dict[int, float | None]]:
    memory = {}
    for done, plan in enumerate(all_plans, start=1):
        memory[plan] = dict(zip(batch_sizes, measure_memory(plan, batch_sizes), strict=True))
        if progress is not None:
            progress("memory", done, len(all_plans))
    return memory
