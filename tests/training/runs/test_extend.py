"""A run may be resumed with more epochs."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from coserve_training.config import TrainConfig
from coserve_training.errors import RunError
from coserve_training.optimise import learning_rate_factor
from coserve_training.runs.extend import extend
from coserve_training.runs.folder import Description
from coserve_training.training_run import train

PLAIN = TrainConfig(data=("x",), network="wide_resnet10_1", epochs=2, batch_size=60)


@pytest.mark.parametrize("schedule", ["exponential", "step"])
def test_the_schedule_of_the_finished_epochs_stays(schedule: str) -> None:
    config = replace(PLAIN, schedule=schedule, epochs=30)  # type: ignore[arg-type]
    extended, lines = extend(config, replace(config, epochs=60), Path("run"))
    assert lines == [
        f"epochs raised from 30 to 60: the {schedule} schedule of the learning rate goes on; "
        "warm-ups stay as they were"
    ]
    for epoch in (0, 0.5, 1, 3, 9, 10, 25, 29.9):
        before = learning_rate_factor(config, epoch, 10)
        assert learning_rate_factor(extended, epoch, 10) == pytest.approx(before)
    assert extended.resolved_co_training_warmup_epochs == config.resolved_co_training_warmup_epochs


@pytest.mark.parametrize(("change", "message"), [
    ({"epochs": 1}, "started with epochs 2, not 1; a resumed run keeps its configuration; only epochs"),
    ({"learning_rate": 0.2}, "started with learning_rate 0.1, not 0.2"),
    ({"epochs": 4, "seed": 3}, "started with seed 0, not 3"),
    ({"epochs": 4, "warmup_epochs": 2.0}, "started with warmup_epochs None, not 2.0"),
])  # fmt: skip
def test_nothing_else_may_change(change: dict[str, object], message: str) -> None:
    with pytest.raises(RunError, match=message):
        extend(PLAIN, replace(PLAIN, **change), Path("run"))  # type: ignore[arg-type]


def test_growing_images_have_no_more_epochs() -> None:
    growing = replace(PLAIN, start_size=16)
    with pytest.raises(RunError, match=r"cannot have more than 2 epochs: its images grow .* with --initial$"):
        extend(growing, replace(growing, epochs=3), Path("run"))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_finished_run_goes_on(schedule: str, image_folder: Path, tmp_path: Path) -> None:
    config = replace(PLAIN, data=(str(image_folder),), schedule=schedule)  # type: ignore[arg-type]
    run = tmp_path / "run"
    train(config, run, report=lambda _: None)
    lines: list[str] = []
    train(replace(config, epochs=4), run, resume=True, report=lines.append)
    assert lines[0] == (
        f"epochs raised from 2 to 4: the learning rate continues on one {schedule} schedule over all 4 "
        "epochs, so it rises once; warm-ups stay as they were"
    )
    assert [line[:9] for line in lines[1:3]] == ["epoch 3/4", "epoch 4/4"]
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    rates = [float(row["learning_rate"]) for row in rows]
    assert len(rates) == 4, rates
    assert rates[2] > rates[1] == rates[3], rates
    stored = Description.read(run).config
    assert (stored.epochs, stored.warmup_epochs) == (4, config.resolved_warmup_epochs)
    again = extend(stored, replace(config, epochs=4), run)  # from Python, as the run was extended
    assert again == (stored, [])
