"""A run may be resumed with more epochs."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from coserve_training.config import TrainConfig
from coserve_training.errors import RunError
from coserve_training.module import CoTraining
from coserve_training.optimise import learning_rate_factor
from coserve_training.runs.extend import extend
from coserve_training.runs.folder import Description, Extension, load_run
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


def test_growing_images_grow_as_before() -> None:
    growing = replace(PLAIN, start_size=16, epochs=12)
    extended, lines = extend(growing, replace(growing, epochs=30), Path("run"))
    assert [extended.size_at(epoch) for epoch in range(12)] == [growing.size_at(epoch) for epoch in range(12)]
    assert extended.size_at(29) == 32
    assert lines[0].endswith("; warm-ups and the growth of images stay as they were")
    again = extend(extended, replace(growing, epochs=30), Path("run"))
    assert again == (extended, [])


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
    assert [row["epochs"] for row in rows] == ["2", "2", "4", "4"]
    training = load_run(run).provenance["training"]
    assert training["extended"] == [{"after": 2, "planned": 2, "epochs": 4}]  # type: ignore[index]
    stored = Description.read(run).config
    assert (stored.epochs, stored.warmup_epochs) == (4, config.resolved_warmup_epochs)
    again = extend(stored, replace(config, epochs=4), run)  # from Python, as the run was extended
    assert again == (stored, [])


def test_a_run_that_was_stopped_gets_more_epochs_too(image_folder: Path, tmp_path: Path) -> None:
    """Its first step goes by the longer schedule already."""
    config = replace(PLAIN, data=(str(image_folder),), epochs=3)
    run = tmp_path / "run"

    def stop(line: str) -> None:
        if line.startswith("epoch "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, run, report=stop)
    rates: list[float] = []

    def note(self: CoTraining, *_: object) -> None:
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CoTraining, "on_train_batch_start", note)
        with pytest.raises(KeyboardInterrupt):
            train(replace(config, epochs=4), run, resume=True, report=stop)
        train(replace(config, epochs=6), run, resume=True, report=lambda _: None)
    stored = Description.read(run)
    assert stored.extended == [Extension(1, 3, 4), Extension(2, 4, 6)]
    extended = stored.config
    four = replace(extended, epochs=4)
    wanted = [0.1 * learning_rate_factor(four, 1 + step / 2, 2) for step in range(2)]
    wanted += [0.1 * learning_rate_factor(extended, 2 + step / 2, 2) for step in range(8)]
    assert rates == pytest.approx(wanted)


def test_a_run_without_a_finished_epoch_is_extended_once(image_folder: Path, tmp_path: Path) -> None:
    config = replace(PLAIN, data=(str(image_folder),), epochs=1)
    run = tmp_path / "run"

    def crash(*_: object) -> None:
        raise MemoryError("as if killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CoTraining, "training_step", crash)
        for epochs in (1, 2, 3):
            with pytest.raises(MemoryError):
                train(replace(config, epochs=epochs), run, resume=epochs > 1, report=lambda _: None)
    assert Description.read(run).extended == [Extension(0, 1, 3)]
