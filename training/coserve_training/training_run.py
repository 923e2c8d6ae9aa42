"""A whole training run: from a data set to a run folder, resumable after every epoch."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor

from coserve_training.config import TrainConfig
from coserve_training.counting import cost
from coserve_training.data import (
    Batches,
    Dataset,
    Membership,
    Progress,
    Split,
    load_dataset,
    name_some,
    usable_cores,
)
from coserve_training.data.order import BatchOrder
from coserve_training.errors import DataError, RunError
from coserve_training.module import CoTraining
from coserve_training.runs.evaluate import Evaluation, channel_statistics, evaluate, write_evaluation
from coserve_training.runs.extend import extend
from coserve_training.runs.folder import SAMPLES, Description, Run, load_run, write_atomically
from coserve_training.runs.images import FILE, read_known, write_known
from coserve_training.runs.output import check_output
from coserve_training.trainer import make_trainer, quiet_lightning
from coserve_training.views import MemberViews


def train(
    config: TrainConfig,
    folder: Path | str,
    *,
    resume: bool = False,
    devices: int = 1,
    nodes: int = 1,
    place_members: bool = False,
    workers: int | None = None,
    tensorboard: bool = False,
    report: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Evaluation | None:
    """Train an ensemble, checkpoint after every epoch, and evaluate the last checkpoint.

    With several devices, Lightning runs this program again, once for each further device of its node.

    Args:
        config: what to train, and how.
        folder: the run folder to create, or to continue with `resume`.
        resume: continue after the last finished epoch.
        devices: GPUs per node, or processes on a machine without GPUs; they share each batch.
        nodes: number of machines. Start the program on each, by hand or by a cluster that Lightning supports.
        place_members: train each member in a process of its own, on whole batches. The results are the same.
        workers: processes that decode and augment images, per device; by default the devices share the cores.
        tensorboard: also write the metrics for TensorBoard, to `tensorboard/` in the run folder.
        report: called with one line per epoch.
        progress: called with the progress of decoding and evaluating.

    Returns:
        The evaluation in the first process; None in all others.

    Raises:
        ConfigError: for a batch that the devices cannot share, members that cannot be placed on them, or a
            precision or logger that is not available.
        DataError: for images that cannot be used; nothing has been written then.
        RunError: if the folder holds a run already or cannot be written, or if `resume` finds no run or
            another configuration. Only `epochs` may be raised (runs/extend.py).
        KeyboardInterrupt: after Ctrl-C; `last.ckpt` holds the last finished epoch.
    """
    folder = Path(folder).absolute()  # a relative path such as "s3:x" could be taken for a URL
    last = folder / "last.ckpt"
    if resume:
        config, changes = extend(Description.read(folder).config, config, folder)
    else:
        changes = []
    trainer = make_trainer(config, folder, report, devices, nodes, place_members, tensorboard)
    first = trainer.is_global_zero
    if not first:
        report = _discard
        progress = None
    resumed = last if resume and last.exists() else None
    for change in changes:
        report(change)
    if resume:
        if resumed is not None:
            load_run(folder)  # find a damaged checkpoint before reading the data
    elif first and (folder / "config.json").exists():
        raise RunError(f"{folder} holds a run already; continue it with --resume, or choose another --output")
    if first:
        check_output(folder, _checkpoint_bytes(config))
    workers = max(1, usable_cores() // devices) if workers is None else workers
    membership = _membership(config, folder, resume, report)
    dataset = _load(config, membership, workers, report, progress)
    training, test = _splits(dataset, config)
    initial = None if resumed is not None or config.initial is None else _initial(config, dataset)
    if resume:
        description = Description.read(folder)
        if description.labels != dataset.labels:
            raise RunError(f"{folder} was trained on other classes: {', '.join(description.labels)}")
        if first and changes:
            description = replace(description, config=replace(config, data=description.config.data))
            description.write(folder)
    else:
        description = _describe(config, dataset, training, initial)
        if first:
            _start(folder, description, test)
    if first:
        write_known(folder, membership.known)
    L.seed_everything(config.seed, verbose=False)
    placed = trainer.global_rank if place_members else None
    members = range(config.split) if placed is None else (placed,)
    training = training.with_views(MemberViews(config, members, description.mean), workers)
    weights = _class_weights(training, len(dataset.labels)) if config.class_weights == "balanced" else None
    module = CoTraining(config, len(dataset.labels), description.mean, description.std, placed, weights)
    if initial is not None:
        for index, member in module.members.items():
            member.load_state_dict(initial.members[int(index)].state_dict())
    _fit(trainer, module, training, test, resumed)
    if not first:
        return None
    run = load_run(folder, "last")
    device = trainer.strategy.root_device
    evaluation = evaluate(run.members, test, description.mean, description.std, progress, device)
    write_evaluation(folder, evaluation, "last", config.epochs)
    if replaced := training.replaced + test.replaced:
        report(f"{len(replaced)} images became unreadable, others were used instead: {name_some(replaced)}")
    return evaluation


def _membership(config: TrainConfig, folder: Path, resume: bool, report: Callable[[str], None]) -> Membership:
    """Return what is known of the images: from the run itself, or the run that it starts from."""
    known_by = folder if resume else None if config.initial is None else Path(config.initial)
    known = None if known_by is None else read_known(known_by)
    if known is None and known_by is not None and (known_by / "config.json").exists():
        report(
            f"{known_by} has no record of its images ({FILE}): an earlier version began it, so nothing shows "
            "whether test images were trained on"
        )
    return Membership(known, resumed=resume)


def _load(
    config: TrainConfig,
    membership: Membership,
    workers: int,
    report: Callable[[str], None],
    progress: Progress | None,
) -> Dataset:
    dataset = load_dataset(
        [Path(path) for path in config.data],
        config.image_size,
        progress,
        resize_size=config.resize_size,
        interpolation=config.interpolation,
        whole=config.crop == "resized",
        skip_corrupt=config.skip_corrupt,
        assign=membership.for_training,
        workers=workers,
    )
    for note in dataset.notes:
        report(note)
    return dataset


def _splits(dataset: Dataset, config: TrainConfig) -> tuple[Split, Split]:
    training = dataset.train
    test = dataset.test
    if training is None:
        raise DataError(f"{', '.join(config.data)}: no train split (train/<class>/<image>)")
    if test is None:
        raise DataError(f"{', '.join(config.data)}: none of the images that this run held out is left")
    if len(training) < config.batch_size:
        raise DataError(f"{len(training)} training images do not fill one batch of {config.batch_size}")
    return training, test


def _class_weights(training: Split, classes: int) -> Tensor:
    """Return weights `[C]` in inverse proportion to the classes' images, whose mean over all images is 1."""
    counts = np.bincount(training.targets, minlength=classes)
    return torch.tensor(
        len(training) / (np.count_nonzero(counts) * np.maximum(counts, 1)), dtype=torch.float32
    )


def _checkpoint_bytes(config: TrainConfig) -> int:
    """Return the size of `last.ckpt`, `best.ckpt` and a third one while it is written."""
    copies = 2 + (config.optimizer == "rmsprop") + (config.ema > 0)  # weights and the optimizer's averages
    parameters = cost(config.network, config.split, image_size=config.image_size).total.parameters
    return 3 * copies * 4 * parameters


def _initial(config: TrainConfig, dataset: Dataset) -> Run:
    """Load the run that the members start from, and check that it fits."""
    folder = Path(str(config.initial))
    start = load_run(folder)
    for name, wanted in (("network", config.network), ("split", config.split)):
        if start.provenance[name] != wanted:
            raise RunError(f"{folder} holds {name} {start.provenance[name]}, not {wanted}")
    if start.labels != dataset.labels:
        raise RunError(f"{folder} was trained on other classes: {', '.join(start.labels)}")
    return start


def _discard(line: str) -> None:
    """Discard a line that the first process reports."""


def _describe(config: TrainConfig, dataset: Dataset, training: Split, initial: Run | None) -> Description:
    if config.mean is None or config.std is None:
        mean, std = channel_statistics(training)
    else:
        mean = list(config.mean)
        std = list(config.std)
    name = "+".join(dict.fromkeys(_dataset_name(Path(path)) for path in config.data))
    history = None if initial is None else dict(initial.provenance["training"])  # type: ignore[call-overload]
    return Description(config, dataset.labels, mean, std, name, history)


def _start(folder: Path, description: Description, test: Split) -> None:
    chosen = np.linspace(0, len(test) - 1, min(SAMPLES, len(test))).round().astype(int)
    samples = io.BytesIO()
    np.savez_compressed(samples, images=test.images[chosen])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write the run folder {folder}: {error.strerror or error}") from error
    write_atomically(folder / "samples.npz", samples.getbuffer())
    description.write(folder)


def _dataset_name(path: Path) -> str:
    return path.name.split(".")[0].removesuffix("-train").removesuffix("-test") or path.resolve().name


def _fit(
    trainer: L.Trainer, module: CoTraining, training: Split, test: Split, checkpoint: Path | None
) -> None:
    config = module.config
    sharing = trainer.world_size if module.placed is None else 1
    classes = training.targets if config.sampling == "balanced" else None
    in_training = BatchOrder(len(training), config.batch_size, config.seed, sharing, classes)
    in_testing = BatchOrder(len(test), config.batch_size, None, sharing)
    loaders = Batches(training, in_training), Batches(test, in_testing)
    with quiet_lightning():
        try:
            trainer.fit(module, *loaders, ckpt_path=checkpoint)
        except SystemExit as interrupted:  # Lightning's reaction to Ctrl-C
            raise KeyboardInterrupt from interrupted
        finally:
            for loader in loaders:
                loader.close()
    if trainer.interrupted:
        raise KeyboardInterrupt
