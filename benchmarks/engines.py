"""Measure how fast this machine runs the shipped ensembles, and how close each engine comes to its peak.

Every ensemble of the repository is quantised to int8 in a temporary folder. Then all engines, precisions and
batch sizes are timed in turn, pinned and not, round after round; members share the cores evenly. For bf16,
OpenVINO computes the fp32 networks in bf16 if the processor supports it.

    python benchmarks/engines.py --calibration-data cifar10-train.zip --evaluation-data cifar10-test.zip

ratio        images per second / the baseline's: onnxruntime, fp32, pinned, at the same batch size
of_peak      operations per second, two per multiply-add, / the fp32 peak of all cores, measured on a large
             matrix product; int8 may exceed 1
floor_ms     time for the multiply-adds of a batch at that peak
top1         top-1 accuracy of each engine in each precision on the evaluation data; without any, as recorded
             by the exports

Writes `benchmarks/results/engines.json`. Takes a few minutes. Run it on an idle machine.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coserve_bench.speedup.devices import Devices
from coserve_bench.speedup.peak import measure_peak
from coserve_bench.tune.accuracy import measure_top1, read_evaluation
from coserve_bench.tune.candidates import Candidate, installed_engines, variants
from coserve_bench.tune.measure import Measured, measure
from coserve_cli.progress import progress_bars
from coserve_export import Int8, export_onnx
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.repository import read_repository
from coserve_server.machine.cores import Cores, usable_cores

BATCH_SIZES = (1, 8, 32)


def quantised(
    ensembles: Sequence[Ensemble], source: Path, target: Path, how: Int8
) -> dict[str, dict[str, Any]]:
    """Quantise every ensemble to int8, and return the report of each by name."""
    losses = {}
    for ensemble in ensembles:
        preprocessing = ensemble.preprocessing
        report = export_onnx(
            [member.model_path for member in ensemble.members if member.model_path],
            target,
            labels=source / ensemble.name / "labels.txt",
            name=ensemble.name,
            mean=preprocessing.mean,
            std=preprocessing.std,
            resize_size=preprocessing.resize_size,
            stretch=preprocessing.resize_size is None,
            interpolation=preprocessing.interpolation,
            weights=[member.weight for member in ensemble.members],
            int8=how,
        )
        for note in report.notes:
            print(note)
        losses[ensemble.name] = report.to_json()["ensemble"]
        print(f"{ensemble.name} in int8: {losses[ensemble.name]}")
    return losses


def pinned_and_not(candidates: Sequence[Candidate], cores: Cores) -> list[Candidate]:
    """Return each candidate pinned and, if the process may pin threads, not pinned."""
    return [
        replace(one, options=replace(one.options, pinned=pinned))
        for one in candidates
        for pinned in ([True, False] if cores.ids else [False])
    ]


def row(one: Measured, baseline: Measured, multiply_adds: int, peak: float) -> dict[str, Any]:
    """Return the figures of a measurement."""
    options = one.candidate.options
    return {
        "engine": options.engine,
        "precision": one.candidate.precision,
        "pinned": options.pinned,
        "batch_size": one.batch_size,
        "batch_ms": round(one.batch_ms, 3),
        "images_per_s": round(one.images_per_s, 1),
        "ratio": round(one.images_per_s / baseline.images_per_s, 3),
        "of_peak": round(2e-9 * multiply_adds * one.images_per_s / peak, 3),
    }


def main() -> None:
    """Measure the ensembles of a repository."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", action="append", help="an ensemble to measure; repeatable (default: all)")
    parser.add_argument("--calibration-data", type=Path, required=True)
    parser.add_argument("--evaluation-data", type=Path, help="images to measure accuracy on")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2, help="per candidate, batch size and round")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "engines.json")
    arguments = parser.parse_args()

    cores = usable_cores()
    peak = measure_peak(Devices(cores))["all_devices"]
    served = read_repository(arguments.repository)
    fp32 = {name: served[name] for name in arguments.model or served}
    evaluation = [arguments.evaluation_data] if arguments.evaluation_data else []
    how = Int8([arguments.calibration_data], evaluation, max_accuracy_loss=100)
    with tempfile.TemporaryDirectory() as folder, progress_bars() as progress:
        losses = quantised(list(fp32.values()), arguments.repository, Path(folder), how)
        ensembles = [*fp32.values(), *read_repository(Path(folder)).values()]
        candidates = variants(ensembles, installed_engines())
        if evaluation:
            images = read_evaluation(evaluation, ensembles[0])
            for note in images.notes:
                print(note)
            candidates = measure_top1(candidates, cores, images, progress)
        every = pinned_and_not(candidates, cores)
        measured = measure(every, cores, BATCH_SIZES, arguments.rounds, arguments.seconds, progress)

    results = {}
    for name, ensemble in fp32.items():
        multiply_adds = ensemble.provenance["multiply_adds"]
        of_ensemble = [one for one in measured if one.candidate.ensemble.name == name]
        # The first candidate of each ensemble is the baseline.
        baseline = of_ensemble[0].candidate
        baselines = {one.batch_size: one for one in of_ensemble if one.candidate is baseline}
        rows = [row(one, baselines[one.batch_size], multiply_adds, peak) for one in of_ensemble]
        floor = {size: round(2e-6 * multiply_adds * size / peak, 3) for size in BATCH_SIZES}
        results[name] = {
            "int8": losses[name],
            "top1": {
                f"{one.options.engine} {one.precision}": one.top1
                for one in candidates
                if one.ensemble.name == name
            },
            "multiply_adds": multiply_adds,
            "floor_ms": floor,
            "rows": rows,
        }
        print(f"{name}: floor {floor} ms")
        for line in rows:
            print("  " + "  ".join(f"{key} {value}" for key, value in line.items()))
    report = {
        "machine": {
            "processor": platform.machine(),
            "cores": cores.count,
            "peak_fp32_gflops": round(peak, 1),
        },
        "versions": {name: version(name) for name in installed_engines()},
        "rounds": arguments.rounds,
        "ensembles": results,
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
