"""Measures the accuracy of candidates."""

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coserve_bench.engine import LoadedNetworks
from coserve_bench.progress import Progress
from coserve_bench.stopping import check_stopped, run_until_stopped
from coserve_bench.tune.candidates import Candidate, load_all
from coserve_export import labelled
from coserve_export.ensemble import Preprocessing
from coserve_server.engines.base import Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.machine.cores import Cores
from coserve_server.pipeline.combine import combine


@dataclass(frozen=True)
class Evaluation:
    """Preprocessed images whose classes are known.

    Attributes:
        batches: images, FP32 `[n, 3, H, W]` each.
        targets: class indices of all N images, `[N]`.
        notes: what to report about the data, in lines.
    """

    batches: Iterable[Images]
    targets: NDArray[np.int64]
    notes: Sequence[str] = ()


def read_evaluation(paths: Sequence[Path], ensemble: Ensemble) -> Evaluation:
    """Read the test splits of some data, preprocessed for an ensemble.

    Raises:
        coserve_export.errors.ExportError: there are no such images, or their classes differ from the
            ensemble's; also later, if an image of a batch cannot be decoded.
    """
    preprocessing = Preprocessing.from_json(ensemble.preprocessing.model_dump())
    images = labelled.read_evaluation(list(paths), ensemble.labels, preprocessing)
    return Evaluation(images.batches(), images.targets, images.notes)


def measure_top1(
    candidates: Sequence[Candidate], cores: Cores, evaluation: Evaluation, progress: Progress | None = None
) -> list[Candidate]:
    """Return the candidates, of one worker each, with the accuracy measured on these images.

    Raises:
        EngineError: a candidate cannot be loaded.
        BenchError: a candidate cannot be run.
    """
    return run_until_stopped(_measure_top1(candidates, cores, evaluation, progress))


async def _measure_top1(
    candidates: Sequence[Candidate], cores: Cores, evaluation: Evaluation, progress: Progress | None
) -> list[Candidate]:
    correct = [0] * len(candidates)
    done = 0
    async with AsyncExitStack() as stack:
        loaded = await load_all(candidates, cores, stack, progress)
        for batch in evaluation.batches:
            targets = evaluation.targets[done : done + len(batch)]
            check_stopped()
            for index, (candidate, (networks,)) in enumerate(zip(candidates, loaded, strict=True)):
                classes = await _classify(networks, candidate.ensemble, batch)
                correct[index] += int(np.sum(classes == targets))
            done += len(batch)
            if progress is not None:
                progress("measuring accuracy", done, len(evaluation.targets))
    return [replace(one, top1=count / done) for one, count in zip(candidates, correct, strict=True)]


async def _classify(networks: LoadedNetworks, ensemble: Ensemble, images: Images) -> NDArray[np.intp]:
    """Return the most probable class of each image, `[N]`."""
    weights = np.array([member.weight for member in ensemble.members])
    size = ensemble.max_batch_size
    logits = []
    for start in range(0, len(images), size):
        (runs,) = await networks.run(images[start : start + size])
        logits.append([run.logits for run in runs if run.logits is not None])
    # Joins the batches' [S, n, C] to [S, N, C].
    classes: NDArray[np.intp] = combine(np.concatenate(logits, axis=1), weights).logits.argmax(axis=1)
    return classes
