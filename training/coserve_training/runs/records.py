"""Records of a checkpoint's accuracy and calibration in its run folder, which export reads.

evaluation.json        scores of the last checkpoint, written by training
last.calibration.json  scores of every subset of members, and temperatures, written by
best.calibration.json  `coserve evaluate --calibrate` for the checkpoint of that name
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from coserve_training.errors import RunError


def read_records(
    folder: Path, checkpoint: str, epochs: int, members: Sequence[nn.Module]
) -> dict[str, object]:
    """Return the provenance's `accuracy` and `calibration`, if there are records of this very checkpoint.

    Args:
        folder: the run folder.
        checkpoint: name of the checkpoint's file, without `.ckpt`.
        epochs: number of epochs after which it was saved.
        members: members with the checkpoint's weights.

    Raises:
        RunError: if a record is damaged.
    """
    calibrated = _read(calibration_file(folder, checkpoint), ["weights", "accuracy", "calibration"])
    if calibrated is not None and calibrated.pop("weights") == weights_digest(members):
        return calibrated
    evaluation = _read(folder / "evaluation.json", ["checkpoint", "epochs", "images", "ensemble", "members"])
    if evaluation is None or (evaluation.pop("checkpoint"), evaluation.pop("epochs")) != (checkpoint, epochs):
        return {}
    return {"accuracy": evaluation}


def calibration_file(folder: Path, checkpoint: str) -> Path:
    """Return the path of a checkpoint's calibration record."""
    return folder / f"{checkpoint}.calibration.json"


def weights_digest(members: Sequence[nn.Module]) -> str:
    """Hash all weights and statistics to 12 hex digits, which tie a calibration to its checkpoint."""
    digest = hashlib.sha256()
    for member in members:
        for tensor in member.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _read(file: Path, keys: list[str]) -> dict[str, Any] | None:
    """Read a JSON object that must have `keys`; None if the file does not exist."""
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
