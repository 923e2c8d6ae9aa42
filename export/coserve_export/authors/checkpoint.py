"""Loading a checkpoint's weights, and nothing that could run code."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coserve_export.errors import NetworkError

NAMED = 3
KEY = re.compile(r"(?:module\.)*models\.(\d+)\.(.+)")
ARCH = re.compile(r"[\w.-]{1,100}")
COMPRESSION = 20
"""Trained weights hardly compress, so a checkpoint never unpacks to this many times its size."""
UNPACKED_BYTES = 1 << 30
"""Up to this size, a checkpoint may unpack to any multiple."""
_scalar = np.float64(0).__reduce__()[0]
_NUMPY_NUMBERS: list[Any] = [
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
]
"""Globals that a pickled numpy number names; loading them runs no code."""


@dataclass(frozen=True)
class Checkpoint:
    """What the authors saved, without the optimizer.

    Attributes:
        name: where it was found, for messages.
        members: each member's weights, by the authors' names without `models.<member>.`.
        arch: the authors' name of the undivided network; None if it is not there.
        epochs: the number of epochs trained.
        top1: the best test accuracy as a fraction.
    """

    name: str
    members: list[dict[str, Tensor]]
    arch: str | None
    epochs: int | None
    top1: float | None

    @property
    def classes(self) -> int:
        """Return the number of classes: the outputs of the only linear layer."""
        sizes = {len(tensor) for tensor in self.members[0].values() if tensor.ndim == 2}
        if len(sizes) != 1:
            raise NetworkError(f"{self.name}: its networks have {len(sizes)} linear layers instead of one")
        return sizes.pop()


def load_checkpoint(path: Path, name: str) -> Checkpoint:
    """Load a checkpoint of the authors' training.

    Raises:
        NetworkError: the file is damaged, asks for code, or is not a checkpoint of the authors' training.
    """
    saved = _load(path, name)
    if not isinstance(saved, Mapping):
        raise NetworkError(f"{name} holds a {type(saved).__name__}, not a checkpoint of the paper's authors")
    state = saved.get("state_dict", saved)
    if not isinstance(state, Mapping) or not state:
        raise NetworkError(f"{name} has no state_dict, so it is not a checkpoint of the paper's authors")
    return Checkpoint(
        name=name,
        members=_split_members(state, name),
        arch=read_arch(saved.get("arch"), name),
        epochs=_number(saved.get("epoch"), int),
        top1=_fraction(_number(saved.get("best_acc1"), float)),
    )


def read_arch(value: object, name: str) -> str | None:
    """Return the authors' name of a network; None if there is none.

    Raises:
        NetworkError: the value cannot be such a name.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str) or ARCH.fullmatch(value) is None:
        raise NetworkError(f"{name}: its arch {str(value)[:50]!r} is not the name of a network")
    return value


def _load(path: Path, name: str) -> Any:
    stored = _is_stored(path, name)
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=stored)
    # Damaged and foreign files raise errors of many types.
    except Exception as error:
        text = str(error) or type(error).__name__
        if "weights only" not in text.lower() and "weights_only" not in text.lower():
            reason = text.splitlines()[0].split(". ")[0]
            raise NetworkError(f"{name} is damaged or is not a checkpoint: {reason}") from error
        wanted = re.search(r"(?:GLOBAL|function) ([\w.]+)", text)
        asks = "holds other objects" if wanted is None else f"asks for {wanted[1]}"
        raise NetworkError(
            f"{name} was not loaded: it {asks}, but a checkpoint of the paper's authors holds weights and "
            "numbers alone"
        ) from error


def _is_stored(path: Path, name: str) -> bool:
    """Return whether torch can read single tensors of the file, without the optimizer's.

    A file that was packed again may hold compressed tensors, which torch would map as if they were not.

    Raises:
        NetworkError: it is compressed so far that unpacking it could exhaust the memory.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size = path.stat().st_size
    unpacked = sum(info.file_size for info in entries)
    if unpacked > max(UNPACKED_BYTES, COMPRESSION * size):
        raise NetworkError(
            f"{name} was not loaded: its {size / 1e6:.1f} MB unpack to {unpacked / 1e9:.1f} GB, which "
            "trained weights never do"
        )
    return all(info.compress_type == zipfile.ZIP_STORED for info in entries)


def _split_members(state: Mapping[Any, Any], name: str) -> list[dict[str, Tensor]]:
    members: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = KEY.fullmatch(str(key))
        if match is None:
            others = [key for key in state if KEY.fullmatch(str(key)) is None]
            listed = ", ".join(map(str, others[:NAMED]))
            raise NetworkError(
                f"{name} is not a checkpoint of the paper's authors: their weights are named models.0.…, "
                f"but here {listed}, …"
            )
        if not isinstance(tensor, Tensor):
            raise NetworkError(f"{name}: {key} is a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized or tensor.is_meta:
            raise NetworkError(f"{name}: {key} is not a plain tensor of real numbers")
        weights = members.setdefault(int(match[1]), {})
        if match[2] in weights:
            raise NetworkError(f"{name} holds {match[2]} of member {int(match[1])} twice")
        weights[match[2]] = tensor
    if sorted(members) != list(range(len(members))):
        raise NetworkError(f"{name} has the members {sorted(members)}; some are missing")
    return [members[index] for index in sorted(members)]


def _number(value: Any, kind: type) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _fraction(percent: float | None) -> float | None:
    return None if percent is None or not 0 < percent <= 100 else round(percent / 100, 6)
