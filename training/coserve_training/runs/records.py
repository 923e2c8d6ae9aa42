"""What was measured of a run's checkpoints, as its folder keeps it for export.

evaluation.json                              scores of the last checkpoint, written by training
last.calibration.json, best.calibration.json scores of every subset of members, and temperatures, written by
                                             `coserve evaluate --calibrate`
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from coserve_training.errors import RunError


def measured(folder: Path, checkpoint: str, epochs: int, members: Sequence[nn.Module]) -> dict[str, object]:
    """The provenance's `accuracy` and `calibration`, as far as they are about this checkpoint.

    Args:
        folder: of the run.
        checkpoint: its file's name without `.ckpt`.
        epochs: after which it was saved.
        members: with the checkpoint's weights.

    Raises:
        RunError: when a record is damaged.
    """
    calibrated = _read(calibration_file(folder, checkpoint), ["weights", "accuracy", "calibration"])
    if calibrated is not None and calibrated.pop("weights") == weights_digest(members):
        return calibrated
    evaluation = _read(folder / "evaluation.json", ["checkpoint", "epochs", "images", "ensemble", "members"])
    if evaluation is None or (evaluation.pop("checkpoint"), evaluation.pop("epochs")) != (checkpoint, epochs):
        return {}
    return {"accuracy": evaluation}


def calibration_file(folder: Path, checkpoint: str) -> Path:
    """Where a checkpoint's calibration is recorded."""
    return folder / f"{checkpoint}.calibration.json"


def weights_digest(members: Sequence[nn.Module]) -> str:
    """12 hex digits over every weight and statistic: which checkpoint a calibration is of."""
    digest = hashlib.sha256()
    for member in members:
        for tensor in member.state_dict().values():
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:12]


def _read(file: Path, keys: list[str]) -> dict[str, Any] | None:
    """A JSON object that has `keys`; None where there is no such file."""
    try:
        record: dict[str, Any] = json.loads(file.read_text())
        missing = [key for key in keys if key not in record]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file}: damaged ({error})") from error
    if missing:
        raise RunError(f"{file}: damaged (it has no {missing[0]})")
    return record
