"""Training an ensemble from a data set into a run folder, resumable at every epoch."""

import csv
import io
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, TQDMProgressBar
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from coserve_training.config import Precision, TrainConfig
from coserve_training.data import Dataset, Progress, Split, load_dataset
from coserve_training.errors import ConfigError, DataError, RunError
from coserve_training.evaluate import Evaluation, channel_statistics, evaluate, write_evaluation
from coserve_training.module import Batch, CoTraining
from coserve_training.run import SAMPLES, Description, Run, load_run, write_atomically

HOLD_OUT = 10
"""Where a data set has no test split, every tenth training image of a class is held out."""


def train(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    report: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Evaluation:
    """Train, checkpoint every epoch, and evaluate the last checkpoint.

    Args:
        config: what to train.
        folder: the run folder; created, or continued when `resume`.
        resume: go on from `last.ckpt`.
        report: told one line per epoch.
        progress: told how far decoding and evaluating are.

    Raises:
        DataError: for images that cannot be used, before anything is written.
        RunError: when the folder holds a run already or cannot be written, or `resume` finds none or another
            configuration.
        KeyboardInterrupt: after Ctrl-C; `last.ckpt` holds the last finished epoch.
    """
    last = folder / "last.ckpt"
    if resume:
        check_resumable(folder, config)
    elif (folder / "config.json").exists():
        raise RunError(f"{folder} holds a run already; continue it with --resume, or choose another --output")
    dataset = load_dataset([Path(path) for path in config.data], config.image_size, progress)
    training, test = _splits(dataset, config, report)
    initial = None if resume or config.initial is None else _initial(config, dataset)
    if resume:
        description = Description.read(folder)
        if description.labels != dataset.labels:
            raise RunError(f"{folder} was trained on other classes: {', '.join(description.labels)}")
    else:
        description = _start(folder, config, dataset, training, test, initial)
    L.seed_everything(config.seed, verbose=False)
    module = CoTraining(config, len(dataset.labels), description.mean, description.std)
    if initial is not None:
        for member, start in zip(module.members, initial.members, strict=True):
            member.load_state_dict(start.state_dict())
    _fit(module, training, test, folder, last if last.exists() else None, report)
    run = load_run(folder, "last")
    evaluation = evaluate(run.members, test, description.mean, description.std, progress)
    write_evaluation(folder, evaluation, "last", config.epochs)
    return evaluation


def check_resumable(folder: Path, config: TrainConfig) -> None:
    """Check that `folder` holds a run of `config`; where the data lies may have changed.

    Raises:
        RunError: naming the first value that differs.
    """
    stored = Description.read(folder).config
    for name in TrainConfig.__dataclass_fields__:
        if name != "data" and getattr(stored, name) != getattr(config, name):
            raise RunError(
                f"{folder} was started with {name} {getattr(stored, name)}, not {getattr(config, name)}; "
                "a resumed run keeps its configuration"
            )


def _splits(dataset: Dataset, config: TrainConfig, report: Callable[[str], None]) -> tuple[Split, Split]:
    if dataset.train is None:
        raise DataError(f"{', '.join(config.data)}: no train split (train/<class>/<image>)")
    training, test = dataset.train, dataset.test
    if test is None:
        held_out = np.zeros(len(training), bool)
        for label in range(len(dataset.labels)):
            held_out[np.flatnonzero(training.targets == label)[HOLD_OUT - 1 :: HOLD_OUT]] = True
        if not held_out.any():
            raise DataError(f"no test split, and no class has {HOLD_OUT} training images to hold one out of")
        report(f"no test split: {held_out.sum()} of {len(training)} training images are held out")
        training, test = (
            Split(training.images[keep], training.targets[keep]) for keep in (~held_out, held_out)
        )
    if len(training) < config.batch_size:
        raise DataError(f"{len(training)} training images do not fill one batch of {config.batch_size}")
    return training, test


def _initial(config: TrainConfig, dataset: Dataset) -> Run:
    """The run that the members start from, once it fits."""
    folder = Path(str(config.initial))
    start = load_run(folder)
    for name, wanted in (("network", config.network), ("split", config.split)):
        if start.provenance[name] != wanted:
            raise RunError(f"{folder} holds {name} {start.provenance[name]}, not {wanted}")
    if start.labels != dataset.labels:
        raise RunError(f"{folder} was trained on other classes: {', '.join(start.labels)}")
    return start


def _start(
    folder: Path, config: TrainConfig, dataset: Dataset, training: Split, test: Split, initial: Run | None
) -> Description:
    mean, std = channel_statistics(training)
    name = "+".join(dict.fromkeys(_dataset_name(Path(path)) for path in config.data))
    history = None if initial is None else dict(initial.provenance["training"])  # type: ignore[call-overload]
    description = Description(config, dataset.labels, mean, std, name, history)
    chosen = np.linspace(0, len(test) - 1, min(SAMPLES, len(test))).round().astype(int)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / "samples.npz", images=test.images[chosen])
        description.write(folder)
    except OSError as error:
        raise RunError(f"cannot write the run folder {folder}: {error.strerror or error}") from error
    return description


def _dataset_name(path: Path) -> str:
    return path.name.split(".")[0].removesuffix("-train").removesuffix("-test") or path.resolve().name


class _Batches(TorchDataset[Batch]):
    """Whole batches by their indices: one gather instead of a collation of single images."""

    def __init__(self, split: Split) -> None:
        self.images, self.targets = torch.from_numpy(split.images), torch.from_numpy(split.targets)

    def __getitem__(self, indices: torch.Tensor) -> Batch:
        return self.images[indices], self.targets[indices]


class _Order(Sampler[torch.Tensor]):
    """Indices of each batch; when shuffled, by seed and epoch alone, so that a resumed run goes on alike."""

    def __init__(self, images: int, batch_size: int, seed: int | None) -> None:
        self.images, self.batch_size, self.seed, self.epoch = images, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images // self.batch_size if self.seed is not None else -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        order = torch.arange(self.images)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.images, generator=generator)
        for index in range(len(self)):
            yield order[index * self.batch_size : (index + 1) * self.batch_size]


class _History(Checkpoint):
    """`metrics.csv` and one line per epoch, told once the epoch's checkpoints are on disk.

    Lightning calls callbacks of this base last, in the order given.
    """

    def __init__(self, file: Path, report: Callable[[str], None]) -> None:
        self.file, self.report, self.started = file, report, time.monotonic()
        self.rows: list[dict[str, object]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.file.exists():
            rows = csv.DictReader(io.StringIO(self.file.read_text()))
            self.rows = [dict(row) for row in rows if int(row["epoch"]) <= trainer.current_epoch]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        measured = {
            name: round(float(value), 5) for name, value in trainer.callback_metrics.items() if name != "loss"
        }
        epoch, seconds = trainer.current_epoch + 1, time.monotonic() - self.started
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append(
            {"epoch": epoch, **measured, "learning_rate": f"{rate:.6g}", "seconds": round(seconds, 1)}
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.file, text.getvalue())
        self.report(
            f"epoch {epoch}/{trainer.max_epochs}  loss {measured['train_loss']:.4f}  "
            f"train top-1 {measured['train_top1']:.2%}  test top-1 {measured['test_top1']:.2%}  "
            f"{seconds:.0f} s"
        )


def _fit(
    module: CoTraining,
    training: Split,
    test: Split,
    folder: Path,
    checkpoint: Path | None,
    report: Callable[[str], None],
) -> None:
    config, bar = module.config, sys.stderr.isatty()
    every_epoch = {"dirpath": folder, "enable_version_counter": False}
    callbacks: list[Callback] = [
        ModelCheckpoint(filename="best", monitor="test_top1", mode="max", **every_epoch),  # type: ignore[arg-type]
        ModelCheckpoint(filename="last", **every_epoch),  # type: ignore[arg-type]
        _History(folder / "metrics.csv", report),
        *([TQDMProgressBar(leave=False)] if bar else []),
    ]
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*(does not have many workers|Checkpoint directory).*")
        trainer = L.Trainer(
            devices=1,
            max_epochs=config.epochs,
            precision=_lightning_precision(config.precision),
            logger=False,
            callbacks=callbacks,
            enable_progress_bar=bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(
                module,
                _loader(training, config, config.seed),
                _loader(test, config, None),
                ckpt_path=checkpoint,
            )
        except SystemExit as interrupted:  # how Lightning ends after Ctrl-C
            raise KeyboardInterrupt from interrupted
    if trainer.interrupted:
        raise KeyboardInterrupt


def _loader(split: Split, config: TrainConfig, seed: int | None) -> DataLoader[Batch]:
    return DataLoader(
        _Batches(split),
        batch_size=None,
        sampler=_Order(len(split), config.batch_size, seed),
        generator=torch.Generator().manual_seed(
            0
        ),  # or starting a loader would advance the views' random stream
        pin_memory=torch.cuda.is_available(),
    )


def _lightning_precision(precision: Precision) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    cuda = torch.cuda.is_available()
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if cuda else torch.cpu._is_avx512_bf16_supported()
        return "bf16-mixed" if fast else "32-true"
    if precision == "fp16":
        if not cuda:
            raise ConfigError("precision fp16 needs a GPU; here, choose fp32 or bf16")
        return "16-mixed"
    return "bf16-mixed" if precision == "bf16" else "32-true"
