"""Finding a checkpoint and its settings: in a zip file, in a folder, or as a file of its own.

Contents decide, not names: a zip file may hold a folder, and torch's own files are zip files, too.
"""

import hashlib
import json
import lzma
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from coserve_export.errors import NetworkError

ZIP = b"PK\x03\x04"
LFS_POINTER = b"version https://git-lfs"
PICKLE = b"\x80"
"""How torch's older files begin."""
SETTINGS = "hparams_train.json"
BEST = "model_best"
SMALL = 1 << 20
"""Settings and checksums are smaller than this many bytes."""
CHUNK = 1 << 20
NAMED = 5


@dataclass(frozen=True)
class Found:
    """A checkpoint's file and what lies beside it.

    Attributes:
        path: the file that torch wrote; it may be temporary.
        name: where it was found, for messages.
        settings: the content of `hparams_train.json`; empty if there is none.
    """

    path: Path
    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    """A file in a zip file or a folder."""

    name: str
    container: zipfile.ZipFile | Path

    def open(self) -> Any:
        if isinstance(self.container, Path):
            return (self.container / self.name).open("rb")
        return self.container.open(self.name)

    @property
    def size(self) -> int:
        if isinstance(self.container, Path):
            return (self.container / self.name).stat().st_size
        return self.container.getinfo(self.name).file_size

    @property
    def base(self) -> str:
        return self.name.rsplit("/", 1)[-1]


def looks_published(path: Path) -> bool:
    """Return whether a file or folder may hold the authors' checkpoint, and not an ONNX file or a run."""
    if path.is_dir():
        files = [*path.rglob("*.pth*"), *path.rglob("*.zip"), *path.rglob(f"{BEST}*")]
        return bool(files) and not (path / "config.json").exists()
    if not path.is_file():  # a pipe would wait for a writer
        return False
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:  # whatever reads it next says why
        head = b""
    if head.startswith((ZIP, PICKLE)) or _is_web_page(head):
        return True
    return path.suffix.lower() in (".zip", ".tar", ".pth", ".pt")


@contextmanager
def open_published(path: Path) -> Iterator[Found]:
    """Find the checkpoint in a zip file, a folder or a file that torch wrote.

    Raises:
        NetworkError: there is none, there are several, or its checksum differs from the one beside it.
    """
    with ExitStack() as stack:
        try:
            found = _find(path, stack)
        except RuntimeError as error:  # zipfile's, of encrypted files and unknown compressions
            raise NetworkError(f"{path} cannot be unpacked: {error}") from error
        except (OSError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError) as error:
            reason = getattr(error, "strerror", None) or error
            raise NetworkError(f"{path} cannot be read: {reason}; download it again") from error
        yield found


def _find(path: Path, stack: ExitStack) -> Found:
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*")) if file.is_file()]
        return _choose(path, [_Entry(name, path) for name in names], stack)
    with path.open("rb") as file:
        head = file.read(512)
    if _is_web_page(head):
        raise NetworkError(
            f"{path} is a web page, not a checkpoint; download the file itself, whose address has "
            "releases/download in it"
        )
    if head.startswith(ZIP):
        if not zipfile.is_zipfile(path):
            raise NetworkError(f"{path} is cut off or damaged: a zip file without its end; download it again")
        archive = stack.enter_context(zipfile.ZipFile(path))
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        if not _is_from_torch(names):
            return _choose(path, [_Entry(name, archive) for name in names], stack)
    elif head.startswith(LFS_POINTER):
        raise NetworkError(f"{path} is a Git LFS pointer to the file; run git lfs pull")
    elif not head.startswith(PICKLE):
        raise NetworkError(f"{path} is neither a zip file nor a checkpoint of torch.save; it may be damaged")
    _check_sum(path, _read_sums([_Entry(f"{path.name}.md5", path.parent)]), path.name, str(path))
    beside = _read_settings([_Entry(SETTINGS, path.parent)])
    return Found(path, str(path), beside)


def _is_web_page(head: bytes) -> bool:
    return re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)", head, re.IGNORECASE) is not None


def _is_from_torch(names: Sequence[str]) -> bool:
    """Return whether a zip file with these files is one that `torch.save` wrote."""
    return any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in names)


def _choose(path: Path, entries: Sequence[_Entry], stack: ExitStack) -> Found:
    entries = [entry for entry in entries if not entry.base.startswith("._")]
    checkpoints = [entry for entry in entries if _is_checkpoint(entry)]
    best = [entry for entry in checkpoints if entry.base.startswith(BEST)]
    if len(best) == 1:
        checkpoints = best
    inner = [entry for entry in entries if entry.base.lower().endswith(".zip")]
    if not checkpoints and inner:
        raise NetworkError(f"{path} holds zip files instead of a checkpoint; give {inner[0].name} itself")
    if not checkpoints:
        listed = ", ".join(entry.name for entry in entries[:NAMED]) or "nothing"
        raise NetworkError(f"{path} holds no checkpoint of torch.save; it holds {listed}")
    if len(checkpoints) > 1:
        listed = ", ".join(entry.name for entry in checkpoints[:NAMED])
        raise NetworkError(f"{path} holds several checkpoints; unpack it and give one of {listed}")
    chosen = checkpoints[0]
    name = f"{path}/{chosen.name}"
    file = path / chosen.name if path.is_dir() else _unpack(chosen, stack)
    _check_sum(file, _read_sums(entries), chosen.base, name)
    return Found(file, name, _read_settings(entries))


def _is_checkpoint(entry: _Entry) -> bool:
    # Zip files in it cannot be told from torch's without unpacking them; data.pkl is a part of torch's.
    if entry.base.lower().endswith(".zip") or entry.base == "data.pkl":
        return False
    with entry.open() as file:
        head = file.read(len(ZIP))
    return bool(head == ZIP or head.startswith(PICKLE))


def _unpack(entry: _Entry, stack: ExitStack) -> Path:
    """Write a file of a zip file to a temporary one, which torch can read piece by piece."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coserve-")))
    file = folder / "checkpoint"
    size = entry.size
    free = shutil.disk_usage(folder).free
    if size > free:
        raise NetworkError(
            f"{entry.name} takes {size / 1e9:.1f} GB unpacked, but {folder.parent} has {free / 1e9:.1f} GB "
            "free; set TMPDIR to a folder with more"
        )
    with entry.open() as source, file.open("wb") as target:
        shutil.copyfileobj(source, target, CHUNK)
    return file


def _read_small(entry: _Entry) -> str | None:
    try:
        with entry.open() as file:
            content = file.read(SMALL)
        return str(content.decode("utf-8-sig", errors="replace"))
    except OSError:
        return None


def _read_settings(entries: Sequence[_Entry]) -> dict[str, Any]:
    """Return the content of `hparams_train.json`, or else the first JSON object with an `arch`."""
    named = [entry for entry in entries if entry.base.endswith(".json")]
    for entry in sorted(named, key=lambda entry: entry.base != SETTINGS):
        text = _read_small(entry)
        if text is None:
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise NetworkError(f"{entry.name} beside the checkpoint is not JSON: {error}") from error
        if isinstance(values, dict) and (entry.base == SETTINGS or "arch" in values):
            return values
        if entry.base == SETTINGS:
            raise NetworkError(
                f"{entry.name} beside the checkpoint holds no settings, but a {type(values).__name__}"
            )
    return {}


def _read_sums(entries: Sequence[_Entry]) -> dict[str, str]:
    """Return MD5 sums by file name, as `md5sum` writes them; one without a name has an empty one."""
    sums = {}
    for entry in entries:
        if "md5" not in entry.name.lower():
            continue
        for line in (_read_small(entry) or "").splitlines():
            match = re.fullmatch(r"([0-9a-fA-F]{32})(?:\s+\*?(\S.*))?", line.strip())
            if match is not None:
                sums[Path(match[2] or "").name] = match[1].lower()
    return sums


def _check_sum(file: Path, sums: dict[str, str], base: str, name: str) -> None:
    expected = sums.get(base) or sums.get("")
    if expected is None:
        return
    with file.open("rb") as stream:
        found = _md5(stream)
    if found != expected:
        raise NetworkError(
            f"{name} is damaged: its MD5 sum is {found}, but the file beside it says {expected}; "
            "download it again"
        )


def _md5(stream: BinaryIO) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
