"""What happens beside the training steps: averaging the weights, checkpoints and the history."""

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, WeightAveraging
from torch import Tensor

from coserve_training.config import TrainConfig
from coserve_training.runs.folder import write_atomically


class WarmedUpAverage(WeightAveraging):
    """An exponential moving average of the weights and of batch norm's statistics.

    After t updates its decay is min(decay, (1 + t) / (10 + t)). If it were constant, the first weights would
    dominate the average for about 1 / (1 - decay) updates.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        super().__init__(avg_fn=self.average)

    def average(self, mean: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        """Return the next average, after `updates` earlier ones."""
        decay = min(self.decay, float((1 + updates) / (10 + updates)))
        return decay * mean + (1 - decay) * current

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Keep the average on the device that trains; Lightning moves the module there only later."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)


class History(Callback):
    """The rows of `metrics.csv`. Checkpoints hold them, so that a resumed run lacks none and repeats none.

    Args:
        config: the recipe.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.started = time.monotonic()
        self.rows: list[dict[str, Any]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start timing."""
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch's row. Lightning calls this before checkpoints are saved."""
        measured = {
            name: round(float(value), 5) for name, value in trainer.callback_metrics.items() if name != "loss"
        }
        self.rows.append({
            "epoch": trainer.current_epoch + 1,
            "epochs": trainer.max_epochs,
            "image_size": self.config.size_at(trainer.current_epoch),
            **measured,
            "learning_rate": f"{trainer.optimizers[0].param_groups[0]['lr']:.6g}",
            "seconds": round(time.monotonic() - self.started, 1),
        })  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, for a checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows from a checkpoint."""
        self.rows = list(state_dict["rows"])


class Checkpoints(Checkpoint):
    """Saves `best.ckpt` and `last.ckpt` after an epoch, then writes `metrics.csv` and reports the epoch.

    The best epoch has the highest accuracy on held-out images among the epochs that are trained at full size.
    The base class is `Checkpoint` because Lightning calls such callbacks last.

    Args:
        folder: the run folder.
        history: the history, which Lightning calls first.
        report: called with one line per epoch.
    """

    def __init__(self, folder: Path, history: History, report: Callable[[str], None]) -> None:
        self.folder = folder
        self.history = history
        self.report = report
        self.best: dict[str, float] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a resumed run's history. It may lack an epoch whose checkpoint was the last thing written."""
        if trainer.is_global_zero and self.history.rows:
            write_history(self.folder, self.history.rows)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, write and report an epoch."""
        row = self.history.rows[-1]
        config = self.history.config
        chooses = "val" if "val_top1" in row else "test"
        top1 = float(trainer.callback_metrics[f"{chooses}_top1"])
        grown = row["image_size"] == config.image_size
        better = grown and top1 > self.best.get(chooses, -1.0)
        if trainer.strategy.reduce_boolean_decision(better):
            self.best = {chooses: top1}
            trainer.save_checkpoint(self.folder / "best.ckpt")
        trainer.save_checkpoint(self.folder / "last.ckpt")
        if trainer.is_global_zero:
            write_history(self.folder, self.history.rows)
            pixels = "" if grown else f"  {row['image_size']} px"
            left = _time_left(config, row["epoch"], row["seconds"])
            self.report(
                f"epoch {row['epoch']}/{row['epochs']}  loss {row['train_loss']:.4f}  "
                f"train {row['train_top1']:.2%}  {chooses} {row[f'{chooses}_top1']:.2%}{pixels}  "
                f"{row['seconds']:.0f} s{left}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracy and the name of its split, for a checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best accuracy from a checkpoint."""
        self.best = dict(state_dict["best"])


def _time_left(config: TrainConfig, trained: int, seconds: float) -> str:
    """Describe how long the remaining epochs take, if time is proportional to the images' area."""
    areas = [config.size_at(epoch) ** 2 for epoch in range(trained - 1, config.epochs)]
    left = seconds * sum(areas[1:]) / areas[0]
    if trained == config.epochs:
        return ""
    if left < 90:
        return f"  {left:.0f} s left"
    hours, minutes = divmod(round(left / 60), 60)
    return f"  {hours} h {minutes:02} min left" if hours else f"  {minutes} min left"


def write_history(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write `metrics.csv`. A run that was resumed with a validation split has more columns from then on."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in reversed(rows) for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "metrics.csv", text.getvalue().encode())
