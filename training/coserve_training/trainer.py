"""Lightning's trainer for a recipe, which writes checkpoints and the history into the run folder."""

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment, TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from coserve_training.callbacks import Checkpoints, History, WarmedUpAverage
from coserve_training.config import Precision, TrainConfig
from coserve_training.device import choose_device
from coserve_training.distributed.batch_norm_sync import SharedBatchNorm
from coserve_training.distributed.launch import find_launcher
from coserve_training.distributed.placement import MemberPerProcess
from coserve_training.errors import ConfigError
from coserve_training.runs.folder import write_atomically


def make_trainer(
    config: TrainConfig,
    folder: Path,
    report: Callable[[str], None],
    devices: int,
    nodes: int,
    place_members: bool,
    tensorboard: bool,
) -> L.Trainer:
    """Make Lightning's trainer for a recipe; `training_run.train` describes the arguments.

    Raises:
        ConfigError: for a batch that the devices cannot share, members that cannot be placed on them, a
            precision or logger that is not available, or another number of processes than was started.
    """
    processes = devices * nodes
    gpu = choose_device().type == "cuda"
    if place_members:
        _check_placement(config, processes)
    elif config.batch_size % processes:
        raise ConfigError(
            f"batch_size must be a multiple of the {processes} devices, not {config.batch_size}"
        )
    elif config.batch_size < 2 * processes:
        raise ConfigError(
            f"batch_size must be at least {2 * processes}, two images for each of the {processes} devices, "
            f"not {config.batch_size}"
        )
    if gpu and devices > torch.cuda.device_count():
        raise ConfigError(
            f"devices must be at most the {torch.cuda.device_count()} GPUs of this machine, not {devices}"
        )
    history = History(config)
    callbacks: list[Callback] = [history, Checkpoints(folder, history, report)]
    if config.ema:
        callbacks.append(WarmedUpAverage(config.ema))
    bar = sys.stderr.isatty()
    if bar:
        callbacks.append(TQDMProgressBar(leave=False))
    plugins: list[CheckpointIO | SharedBatchNorm | ClusterEnvironment] = [
        _AtomicCheckpoints(),
        find_launcher(devices, nodes),
    ]
    # A placed member sees whole batches, so there are no statistics to share.
    shared = config.sync_batch_norm and processes > 1 and not place_members
    if shared and not gpu:
        plugins.append(SharedBatchNorm())
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.ERROR)
    with quiet_lightning():
        return L.Trainer(
            accelerator="gpu" if gpu else "cpu",
            devices=devices,
            num_nodes=nodes,
            strategy=MemberPerProcess() if place_members else "ddp" if processes > 1 else "auto",
            sync_batchnorm=shared and gpu,
            plugins=plugins,  # type: ignore[arg-type]
            max_epochs=config.epochs,
            precision=_lightning_precision(config.precision),
            accumulate_grad_batches=config.accumulate,
            logger=_tensorboard(folder) if tensorboard else False,
            callbacks=callbacks,
            enable_progress_bar=bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )


def _check_placement(config: TrainConfig, processes: int) -> None:
    if processes != config.split:
        raise ConfigError(
            f"to place {config.split} members on a device each, devices × nodes must be {config.split}, "
            f"not {processes}"
        )
    if config.precision == "fp16":
        raise ConfigError(
            "members cannot be placed with precision fp16, whose loss scale depends on all members; "
            "choose fp32 or bf16"
        )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice to programmers, which users of Coserve cannot follow."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*(does not have many workers|Checkpoint directory).*")
        yield


def _tensorboard(folder: Path) -> TensorBoardLogger:
    try:
        return TensorBoardLogger(folder, name=None, version="tensorboard")
    except ModuleNotFoundError as error:
        raise ConfigError("--tensorboard needs a package: pip install tensorboardX") from error


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


class _AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that replace the previous file only once they are complete.

    Lightning writes to a temporary file that may lie on another file system, and copies it from there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(Path(path), content.getbuffer())
