"""Tunes one ensemble from request to report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coserve_bench.engine import OPENVINO
from coserve_bench.errors import BenchError
from coserve_bench.progress import Progress
from coserve_bench.tune.accuracy import measure_top1, read_evaluation
from coserve_bench.tune.candidates import (
    Goal,
    comparable,
    fitting,
    installed_engines,
    loadable,
    variants,
    with_layouts,
)
from coserve_bench.tune.measure import Interrupted, Measured, best, measure
from coserve_server.ensembles.repository import read_repository
from coserve_server.machine.cores import usable_cores
from coserve_server.machine.memory import available_bytes


@dataclass(frozen=True)
class Request:
    """The candidates to choose from, and the goal.

    Attributes:
        models: names of ensembles in the repository; the others are compared with the first.
        max_accuracy_loss: top-1 accuracy that may be lost against the first, in percentage points.
        evaluation_data: images with a test split; without any, the recorded accuracy counts.
        engines: names of engines; without any, those installed.
        rounds: turns of each candidate.
    """

    repository: Path
    models: Sequence[str]
    goal: Goal
    max_accuracy_loss: float
    evaluation_data: Sequence[Path]
    engines: Sequence[str]
    rounds: int


@dataclass(frozen=True)
class Report:
    """All measurements, and the choice.

    Attributes:
        chosen: the best measurement; None if Ctrl-C stopped the measuring.
        left_out: why candidates were not measured, by name.
        notes: what to report about the evaluation data, in lines.
    """

    repository: Path
    goal: Goal
    measured: Sequence[Measured]
    chosen: Measured | None
    left_out: Mapping[str, str]
    notes: Sequence[str]

    @property
    def settings(self) -> dict[str, Any] | None:
        """The settings of `coserve serve` that serve the choice; None without a choice."""
        if self.chosen is None:
            return None
        options = self.chosen.candidate.options
        settings: dict[str, Any] = {
            "repository": str(self.repository),
            "default_model": self.chosen.candidate.ensemble.name,
            "engine": options.engine,
            "workers": self.chosen.candidate.workers,
            "member_threads": options.threads,
            "pin_members": options.pinned,
        }
        if options.engine == OPENVINO:
            settings["openvino_precision"] = options.precision
        # With a limit of 1, concurrent requests could not share a batch.
        if self.chosen.batch_size > 1:
            settings["max_batch_size"] = self.chosen.batch_size
        return settings

    def to_toml(self) -> str:
        """Return the settings as TOML; empty without a choice."""
        return "".join(f"{name} = {_toml(value)}\n" for name, value in (self.settings or {}).items())

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "goal": self.goal,
            "complete": self.chosen is not None,
            "choice": self.settings,
            "measured": [_row(one) for one in self.measured],
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        }


def choose(request: Request, progress: Progress | None) -> Report:
    """Load, measure and compare every way to serve the ensembles.

    Raises:
        BenchError, coserve_server.errors.StartupError, coserve_export.errors.ExportError: nothing can be
            measured; the text says why.
        KeyboardInterrupt: Ctrl-C was pressed before the first measurement; later it ends the measuring.
    """
    cores = usable_cores()
    served = read_repository(request.repository)
    if unknown := [name for name in request.models if name not in served]:
        names = ", ".join(served)
        raise BenchError(f"{', '.join(unknown)} is not in {request.repository}; choose from {names}")
    ensembles = [served[name] for name in dict.fromkeys(request.models)]
    candidates = variants(ensembles, list(dict.fromkeys(request.engines or installed_engines())))
    candidates, unloadable = loadable(candidates, cores)
    notes: Sequence[str] = ()
    if request.evaluation_data:
        evaluation = read_evaluation(request.evaluation_data, ensembles[0])
        notes = evaluation.notes
        candidates = measure_top1(candidates, cores, evaluation, progress)
    candidates, inaccurate = comparable(candidates, request.max_accuracy_loss)
    candidates, too_large = fitting(with_layouts(candidates, cores, request.goal), available_bytes())
    left_out = unloadable | inaccurate | too_large
    chosen = None
    try:
        measured = measure(candidates, cores, rounds=request.rounds, progress=progress)
        chosen = best(measured, request.goal)
    except Interrupted as interrupted:
        (measured,) = interrupted.args
    return Report(request.repository, request.goal, measured, chosen, left_out, notes)


def _toml(value: object) -> str:
    """Return a string, number or boolean as JSON that is TOML, too."""
    # TOML has no surrogates, as which JSON would escape some characters, and no bare DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _row(one: Measured) -> dict[str, Any]:
    options = one.candidate.options
    return {
        "model": one.candidate.ensemble.name,
        "engine": options.engine,
        "precision": one.candidate.precision,
        "top1": one.candidate.top1,
        "workers": one.candidate.workers,
        "copies": one.candidate.copies,
        "threads": options.threads,
        "pinned": options.pinned,
        "batch_size": one.batch_size,
        "batch_ms": round(one.batch_ms, 3),
        "images_per_s": round(one.images_per_s, 1),
    }
