"""The official CIFAR-10 and CIFAR-100 files, Python version (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from coserve_training.data.download import check_published
from coserve_training.data.passed_over import is_litter
from coserve_training.data.split import Labelled
from coserve_training.errors import DataError

LAYOUTS = {
    "cifar-10-batches-py": (
        [f"data_batch_{i}" for i in range(1, 6)],
        ["test_batch"],
        "batches.meta",
        "labels",
        "label_names",
    ),
    "cifar-100-python": (["train"], ["test"], "meta", "fine_labels", "fine_label_names"),
}
MAX_FILE_BYTES = 1 << 30
"""Larger files are not CIFAR's, whose largest has 150 MB."""


class _ArraysOnly(pickle.Unpickler):
    """Unpickles only numpy arrays and plain containers: a data file must not run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in {"_reconstruct", "ndarray", "dtype"}:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not part of the CIFAR format")


def read_cifar(path: Path) -> Labelled | None:
    """Read `cifar-10-batches-py` or `cifar-100-python`, a folder that contains one, or its `.tar.gz`.

    An archive with the name of a published one is checked against that one's checksum.

    Returns:
        Labels, and the splits "train" and "test"; None if `path` is something else.

    Raises:
        DataError: if a file of the format is missing or damaged.
    """
    opened = _open(path)
    if opened is None:
        return None
    name, read = opened
    train, test, meta, label_key, names_key = LAYOUTS[name]
    labels = [label.decode() for label in _load(read, path, meta, names_key)[names_key.encode()]]
    splits = {}
    for split, files in (("train", train), ("test", test)):
        batches = [_load(read, path, file, "data", label_key) for file in files]
        pixels = np.concatenate([np.asarray(batch[b"data"], np.uint8) for batch in batches])
        classes = np.concatenate([np.asarray(batch[label_key.encode()], np.int64) for batch in batches])
        if pixels.shape != (len(classes), 3072):
            raise DataError(f"{path}: {split} has pixels of shape {pixels.shape} for {len(classes)} labels")
        splits[split] = (np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), classes)
    return labels, splits


def _open(path: Path) -> tuple[str, Callable[[str], bytes]] | None:
    if path.is_dir():
        for name, (_, _, meta, _, _) in LAYOUTS.items():
            for folder in (path, path / name):
                if (folder / meta).is_file() and (folder.name == name or folder is path):
                    return name, lambda file, folder=folder: (folder / file).read_bytes()
    elif path.is_file():
        if path.suffix == ".gz":
            check_published(path)
        data = _unpacked(path)
        for name, (_, _, meta, _, _) in LAYOUTS.items():
            if f"{name}/{meta}" in data:
                return name, lambda file, name=name: data[f"{name}/{file}"]
    return None


def _unpacked(path: Path) -> dict[str, bytes]:
    """Return the files of a tar archive of CIFAR by name; nothing if `path` is something else.

    Other archives are left at their first foreign entry, for they may be large.
    """
    files = dict[str, bytes]()
    try:
        if not tarfile.is_tarfile(path):
            return {}
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not name.parts or any(map(is_litter, name.parts)):
                    continue
                if name.parts[0] not in LAYOUTS or member.size > MAX_FILE_BYTES:
                    return {}
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    files[str(name)] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path}: damaged archive ({error})") from error
    return files


def _load(read: Callable[[str], bytes], path: Path, file: str, *keys: str) -> dict[bytes, Any]:
    try:
        content = _ArraysOnly(io.BytesIO(read(file)), encoding="bytes").load()
    except (OSError, KeyError) as error:
        raise DataError(f"{path}: {file} is missing") from error
    # Damaged pickles raise many types of errors: UnpicklingError, IndexError, TypeError and others.
    except Exception as error:
        raise DataError(f"{path}: {file} is damaged ({error})") from error
    if not isinstance(content, dict) or any(key.encode() not in content for key in keys):
        raise DataError(f"{path}: {file} is damaged (it does not hold {', '.join(keys)})")
    return content
