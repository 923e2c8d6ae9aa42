"""A run's evaluation preprocessing travels: exported networks are served on the same tensors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from coserve_export.ensemble import Preprocessing
from coserve_export.labelled import read_calibration, read_evaluation
from coserve_export.trained import export_run
from coserve_server.ensembles.repository import read_repository
from coserve_server.pipeline.preparation import EncodedImage, _Job, _Processes
from coserve_training.runs import evaluate
from coserve_training.runs.folder import Run, load_run
from tests.training.untrained_run import LABELS, write_run

Tensors = NDArray[np.float32]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs and PNGs of several shapes, one of them exactly the networks' size."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(3)
    for label in LABELS:
        folder = root / "test" / label
        folder.mkdir(parents=True)
        for name, size in (("a.jpg", (75, 50)), ("b.png", (40, 61)), ("c.png", (32, 32))):
            coarse = random.integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return root


class Recorder(nn.Module):
    """A network that keeps what it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        logits: Tensor = self.network(images)
        return logits


def serve(repository: Path, photographs: Path) -> Tensors:
    """Return the tensors that the server makes of the photographs."""
    (ensemble,) = read_repository(repository).values()
    files = [file for label in LABELS for file in sorted((photographs / "test" / label).iterdir())]
    how = ensemble.preprocessing
    jobs = [_Job(EncodedImage(file.read_bytes()), 0, how, 10**6, 2**62, _Processes()) for file in files]
    return np.stack([job.prepare()[0] for job in jobs])


def test_evaluation_calibration_and_serving_share_tensors(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"evaluation_scale": 1.15, "interpolation": "bicubic"}
    folder = write_run(tmp_path / "run", photographs, split=1, **options)
    recorders: list[Recorder] = []

    def load_and_record(folder: Path, checkpoint: str) -> Run:
        run = load_run(folder)
        recorders.extend(Recorder(member) for member in run.members)
        return replace(run, members=list(recorders))

    monkeypatch.setattr(evaluate, "load_run", load_and_record)
    evaluate.evaluate_run(folder, photographs, report=lambda _: None)
    (recorder,) = recorders
    evaluated = torch.cat(recorder.seen).numpy()
    export_run(folder, tmp_path / "repository")
    served = serve(tmp_path / "repository", photographs)
    np.testing.assert_array_equal(served, evaluated)
    how = Preprocessing.from_json(load_run(folder).preprocessing)
    assert (how.resize_size, how.interpolation) == (36, "bicubic")
    for read in (read_evaluation, read_calibration):
        np.testing.assert_array_equal(
            np.concatenate(list(read([photographs], LABELS, how).batches())), served
        )
