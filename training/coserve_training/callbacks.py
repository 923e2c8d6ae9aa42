"""What happens beside the training steps: averaging the weights, and writing the history."""

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from torch import Tensor

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


class History(Checkpoint):
    """Writes `metrics.csv` and reports one line per epoch, once the epoch's checkpoints are on disk.

    The base class is `Checkpoint` because Lightning calls such callbacks last, in the given order.
    """

    def __init__(self, file: Path, report: Callable[[str], None]) -> None:
        self.file = file
        self.report = report
        self.started = time.monotonic()
        self.rows: list[dict[str, object]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the rows of the finished epochs."""
        if self.file.exists():
            rows = csv.DictReader(io.StringIO(self.file.read_text()))
            self.rows = [dict(row) for row in rows if int(row["epoch"]) <= trainer.current_epoch]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start timing."""
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write and report the epoch."""
        if not trainer.is_global_zero:
            return
        measured = {
            name: round(float(value), 5) for name, value in trainer.callback_metrics.items() if name != "loss"
        }
        epoch = trainer.current_epoch + 1
        seconds = time.monotonic() - self.started
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append(
            {"epoch": epoch, **measured, "learning_rate": f"{rate:.6g}", "seconds": round(seconds, 1)}
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.file, text.getvalue().encode())
        self.report(
            f"epoch {epoch}/{trainer.max_epochs}  loss {measured['train_loss']:.4f}  "
            f"train top-1 {measured['train_top1']:.2%}  test top-1 {measured['test_top1']:.2%}  "
            f"{seconds:.0f} s"
        )
