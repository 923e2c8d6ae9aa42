"""A whole training run: from a data set to a run folder, resumable after every epoch."""

from collections.abc import Callable
from contextlib import ExitStack
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
from coserve_training.distributed.ending import ending_together
from coserve_training.errors import DataError, RunError
from coserve_training.module import CoTraining
from coserve_training.runs.evaluate import Evaluation, evaluate, write_evaluation
from coserve_training.runs.extend import extend
from coserve_training.runs.folder import Description, Run, load_run, name_other_checkpoint
from coserve_training.runs.images import FILE, ImageRecord, write_known
from coserve_training.runs.lock import only_training
from coserve_training.runs.output import check_output
from coserve_training.runs.start import (
    begin,
    check_initial,
    check_new,
    describe,
    describe_resumed,
    load_initial,
)
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
        RunError: if the folder holds a run already, is in use or cannot be written, or if `resume` finds no
            run, no `last.ckpt` of finished epochs, or another configuration. Only `epochs` may be raised
            (runs/extend.py).
        KeyboardInterrupt: after Ctrl-C; `last.ckpt` holds the last finished epoch.
    """
    folder = Path(folder).absolute()  # a relative path such as "s3:x" could be taken for a URL
    last = folder / "last.ckpt"
    stored = Description.read(folder) if resume else None
    changes: list[str] = []
    if stored is not None:
        config, changes = extend(stored.config, config, folder)
    trainer = make_trainer(config, folder, report, devices, nodes, place_members, tensorboard)
    first = trainer.is_global_zero
    if not first:
        report = _discard
        progress = None
    with ExitStack() as held:
        if first:
            check_output(folder, _checkpoint_bytes(config))
            if resume:
                held.enter_context(only_training(folder))
            else:
                check_new(folder)
        resumed = last if resume and _has_checkpoint(folder) else None
        for change in changes:
            report(change)
        finished = 0
        if resumed is not None:  # find a damaged checkpoint before reading the data
            finished = int(load_run(folder).provenance["training"]["epochs"])  # type: ignore[index]
        workers = max(1, usable_cores() // devices) if workers is None else workers
        membership = _membership(config, folder, resume, report)
        dataset = _load(config, membership, workers, report, progress)
        training, test = _splits(dataset, config)
        initial = None
        if resumed is None and config.initial is not None:
            initial = load_initial(config, dataset.labels)
        if stored is None:
            description = describe(config, dataset, training, initial)
            if first:
                held.enter_context(only_training(folder))
                begin(folder, description, membership.known, test)
        else:
            if stored.labels != dataset.labels:
                raise RunError(f"{folder} was trained on other classes: {name_some(stored.labels)}")
            if initial is not None:
                check_initial(folder, stored, initial)
            description, changes = describe_resumed(stored, config, dataset, membership.added, finished)
            for change in changes:
                report(change)
            if first:
                description.write(folder)
                write_known(folder, membership.known)
        L.seed_everything(config.seed, verbose=False)
        placed = trainer.global_rank if place_members else None
        members = range(config.split) if placed is None else (placed,)
        training = training.with_views(MemberViews(config, members, description.mean), workers)
        choosing = test if dataset.val is None else dataset.val
        if finished == config.epochs:
            report(f"{finished} of {finished} epochs are finished; more --epochs would train on")
        module = _make_module(description, dataset, placed, initial)
        _fit(trainer, module, training, choosing, resumed)
        if not first:
            return None
        evaluation = _score(folder, description, dataset, trainer.strategy.root_device, progress)
    choosing_too = [] if dataset.val is None else dataset.val.replaced
    if replaced := training.replaced + choosing_too + test.replaced:
        report(f"{len(replaced)} images became unreadable, others were used instead: {name_some(replaced)}")
    return evaluation


def _has_checkpoint(folder: Path) -> bool:
    """Return whether a run has finished an epoch.

    Raises:
        RunError: if it has, but its checkpoint is gone: to start again would replace `best.ckpt`.
    """
    last = folder / "last.ckpt"
    if last.exists():
        return True
    if not (folder / "metrics.csv").exists():
        return False
    instead = name_other_checkpoint(folder, "last") or (
        "; no checkpoint is left, so begin another run, with another --output"
    )
    raise RunError(f"{last} is missing, but metrics.csv lists finished epochs{instead}")


def _membership(config: TrainConfig, folder: Path, resume: bool, report: Callable[[str], None]) -> Membership:
    """Return the images that are known from the run itself, or from the run that it starts from."""
    known_by = folder if resume else config.initial
    if known_by is None:
        return Membership()
    record = ImageRecord.read(Path(known_by))
    if record.known is None:
        report(
            f"{known_by} has no record of its images ({FILE}): an earlier version began it, so nothing shows "
            "whether test images were trained on"
        )
    # Other data may use the same names for other images.
    return Membership(record.known, resumed=resume, same_place=resume or record.lies_at(config.data))


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
    if dataset.val is not None and dataset.test is not None:
        chosen_on = f"{len(dataset.val)} val images choose the best epoch"
        report(f"{chosen_on}; {len(dataset.test)} test images are scored")
    return dataset


def _splits(dataset: Dataset, config: TrainConfig) -> tuple[Split, Split]:
    training = dataset.train
    test = dataset.test
    if training is None:
        raise DataError(f"{', '.join(config.data)}: no train split (train/<class>/<image>)")
    if test is None:
        raise DataError(f"{', '.join(config.data)}: none of the images that this run held out is left")
    if len(training) < config.batch_size:
        raise DataError(
            f"{len(training)} training images do not fill one batch of {config.batch_size}; "
            f"set batch_size (--batch-size) to at most {len(training)}"
        )
    return training, test


def _make_module(
    description: Description, dataset: Dataset, placed: int | None, initial: Run | None
) -> CoTraining:
    """Make the members, or the one that is placed in this process, with the weights that they start from."""
    assert dataset.train is not None
    config = description.config
    classes = len(dataset.labels)
    weights = _class_weights(dataset.train, classes) if config.class_weights == "balanced" else None
    chooses = "test" if dataset.val is None else "val"
    module = CoTraining(config, classes, description.mean, description.std, placed, weights, chooses)
    if initial is not None:
        for index, member in module.members.items():
            member.load_state_dict(initial.members[int(index)].state_dict())
    return module


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


def _discard(line: str) -> None:
    """Discard a line that the first process reports."""


def _fit(
    trainer: L.Trainer, module: CoTraining, training: Split, choosing: Split, checkpoint: Path | None
) -> None:
    config = module.config
    sharing = trainer.world_size if module.placed is None else 1
    classes = training.targets if config.sampling == "balanced" else None
    in_training = BatchOrder(len(training), config.batch_size, config.seed, sharing, classes)
    in_choosing = BatchOrder(len(choosing), config.batch_size, None, sharing)
    loaders = Batches(training, in_training), Batches(choosing, in_choosing)
    with quiet_lightning(), ending_together(trainer):
        try:
            trainer.fit(module, *loaders, ckpt_path=checkpoint)
        except SystemExit as interrupted:  # Lightning's reaction to Ctrl-C and SIGTERM
            raise KeyboardInterrupt from interrupted
        except DataError as error:
            if trainer.received_sigterm:  # SIGTERM to all processes ends the workers first.
                raise KeyboardInterrupt from error
            raise
        finally:
            for loader in loaders:
                loader.close()
    if trainer.interrupted:
        raise KeyboardInterrupt


def _score(
    folder: Path, description: Description, dataset: Dataset, device: torch.device, progress: Progress | None
) -> Evaluation:
    """Evaluate the last checkpoint, and record its scores."""
    assert dataset.test is not None
    run = load_run(folder, "last")
    scores = evaluate(run.members, dataset.test, description.mean, description.std, progress, device)
    evaluation = replace(scores, split=dataset.test_name)
    write_evaluation(folder, evaluation, "last", description.config.epochs)
    return evaluation
