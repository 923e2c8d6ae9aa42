"""Measure what averaging more networks would gain: mirrored images, and all shipped ensembles of a network.

Each ensemble is also compared with the first one, image by image, which gives the difference a smaller
sampling error than two accuracies have.

    python benchmarks/averaged.py --data cifar10-test.zip [--network wide_resnet16_4]

Every ensemble counts once in the mean over ensembles, and each of its members equally within it. Takes some
five minutes.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from coserve_bench.tune.accuracy import read_evaluation
from coserve_export.errors import DescriptionError
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.repository import read_repository
from coserve_server.errors import RepositoryError

Logits = NDArray[np.float32]


def measure(ensemble: Ensemble, data: Path) -> tuple[Logits, Logits, NDArray[np.int64]]:
    """Return the mean logits `[N, C]` of the images and of their mirror images, and their classes `[N]`."""
    evaluation = read_evaluation([data], ensemble)
    sessions = [
        onnxruntime.InferenceSession(member.model_path) for member in ensemble.members if member.model_path
    ]
    plain, mirrored = [], []
    for batch in evaluation.batches:
        for images, found in ((batch, plain), (np.ascontiguousarray(batch[..., ::-1]), mirrored)):
            found.append(np.mean([one.run(None, {"images": images})[0] for one in sessions], axis=0))
    return np.concatenate(plain), np.concatenate(mirrored), evaluation.targets


def main() -> None:
    """Print accuracies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="images with a test split")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--network", default="wide_resnet16_4")
    arguments = parser.parse_args()
    try:
        served = read_repository(arguments.repository).values()
        measured = {
            one.name: measure(one, arguments.data)
            for one in served
            if one.provenance.get("network") == arguments.network
        }
    except (DescriptionError, RepositoryError) as error:
        parser.error(str(error))
    if not measured:
        networks = sorted({str(one.provenance.get("network")) for one in served})
        parser.error(f"no ensemble of {arguments.network}; there are {', '.join(networks)}")
    plain, mirrored, targets = (np.array(part) for part in zip(*measured.values(), strict=True))
    for name, one, both in zip(measured, plain, (plain + mirrored) / 2, strict=True):
        print(f"{name}: {top1(one, targets[0])}, with mirrored images {top1(both, targets[0])}")
    right = (plain.argmax(2) == targets).astype(float)
    for name, ahead in list(zip(measured, right - right[0], strict=True))[1:]:
        error = ahead.std() / len(ahead) ** 0.5
        print(f"{name} against {next(iter(measured))}: {ahead.mean():+.2%}, sampling error {error:.2%}")
    mean = top1(plain.mean(0), targets[0])
    print(f"all: {mean}, with mirrored images {top1((plain + mirrored).mean(0), targets[0])}")


def top1(logits: Logits, targets: NDArray[np.int64]) -> str:
    """Return the share of images whose class is the most probable one."""
    return f"{(logits.argmax(1) == targets).mean():.2%}"


if __name__ == "__main__":
    main()
