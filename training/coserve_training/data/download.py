"""Public data sets by name, downloaded once into a cache folder."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from coserve_training.data.split import Progress
from coserve_training.errors import DataError

CHUNK = 1 << 20
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Remote:
    """A published file and its MD5 checksum."""

    file: str
    url: str
    md5: str


# Checksums: https://www.cs.toronto.edu/~kriz/cifar.html, and torchvision.datasets for SVHN.
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
KNOWN = {
    name: tuple(Remote(file, folder + file, md5) for file, md5 in files.items())
    for name, folder, files in (
        ("cifar10", _CIFAR, {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}),
        ("cifar100", _CIFAR, {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}),
        (
            "svhn",
            _SVHN,
            {
                "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
                "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            },
        ),
        ("svhn_extra", _SVHN, {"extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7"}),
    )
}


def fetch(name: str, progress: Progress | None = None) -> list[Path]:
    """Return the files of a known data set, from the cache folder or downloaded into it.

    The folder is `$COSERVE_DATA`, or `~/.cache/coserve`. A file gets its name there only once it is complete.

    Raises:
        DataError: if a file is not in the cache, and cannot be downloaded or has the wrong checksum. The
            message says where to put the file.
    """
    folder = _cache_folder()
    paths = [folder / remote.file for remote in KNOWN[name]]
    for remote, path in zip(KNOWN[name], paths, strict=True):
        if not path.is_file():
            _download(remote, path, progress)
    return paths


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("COSERVE_DATA") or "~/.cache/coserve").expanduser()
    except RuntimeError as error:
        raise DataError(
            f"no folder for downloads: {error}; set COSERVE_DATA to one, or give the files themselves"
        ) from error


def check_published(path: Path) -> None:
    """Check the checksum of a file with the name of a published one. Other files pass.

    Raises:
        DataError: if the checksum differs.
    """
    for remote in (remote for remotes in KNOWN.values() for remote in remotes):
        if path.name == remote.file:
            digest = hashlib.md5(usedforsecurity=False)
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
            if (found := digest.hexdigest()) != remote.md5:
                raise DataError(
                    f"{path}: damaged (MD5 {found}, published {remote.md5}); fetch it again from {remote.url}"
                )


def _download(remote: Remote, path: Path, progress: Progress | None) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            for chunk in _read_chunks(remote, progress):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != remote.md5:
            raise DataError(
                f"{remote.url} sent a file that is not the published one (MD5 {digest.hexdigest()}, "
                f"published {remote.md5}); try again later, or put the published file at {path}"
            )
        part.replace(path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        # urllib's errors do not say that a variable caused them, and may show a proxy's password.
        if variables := _responsible_variables(remote.url, error):
            shown = "" if isinstance(error, ValueError) else f"{reason}; "
            reason = f"{shown}the environment sets {', '.join(variables)}"
        raise DataError(
            f"{remote.file} cannot be downloaded ({reason}); fetch {remote.url} and put it at {path}"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _responsible_variables(url: str, error: Exception) -> list[str]:
    """Return the variables of the environment that may have caused an error."""
    scheme = url.partition(":")[0]
    names = {f"{scheme}_proxy"}
    if not isinstance(error, urllib.error.HTTPError):
        # Since Python 3.12, urllib prepares for HTTPS whatever the address is.
        names |= {"sslkeylogfile"} | ({"ssl_cert_file", "ssl_cert_dir"} if scheme == "https" else set())
    return sorted(name for name, value in os.environ.items() if value and name.lower() in names)


def _read_chunks(remote: Remote, progress: Progress | None) -> Iterator[bytes]:
    with urllib.request.urlopen(remote.url, timeout=TIMEOUT_S) as response:  # noqa: S310 -- of KNOWN
        total = int(response.headers.get("Content-Length") or 0)
        done = 0
        while chunk := response.read(CHUNK):
            yield chunk
            done += len(chunk)
            if progress is not None and total:
                progress(f"downloading {remote.file}", done, total)
        if done < total:
            raise ConnectionError(f"the connection ended after {done} of {total} bytes")
