"""Downloading a published checkpoint once, into a cache folder."""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPMessage
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from coserve_export.authors.archive import open_published
from coserve_export.errors import DescriptionError, NetworkError

Steps = Callable[[str, int, int], None]
"""A function that is called with a short description, the bytes so far and the bytes in total."""
CHUNK = 1 << 20
TIMEOUT_S = 30.0


class _HttpsAlone(urllib.request.HTTPRedirectHandler):
    """Refuses to be redirected to an address whose answer anyone on the way could change."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the next request, unless it would not use https."""
        if not newurl.lower().startswith("https://"):
            raise urllib.error.URLError(f"redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_link(source: str) -> bool:
    """Return whether a source is a web address rather than a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", source) is not None


def download_published(link: str, progress: Steps | None = None) -> Path:
    """Return the file of an https address, from the cache folder or downloaded into it.

    The folder is `$COSERVE_DATA`, or `~/.cache/coserve`. Each address has a folder of its own in it, since
    many files are called `model_best.pth.tar`. A file gets its name there only once it is complete.

    Raises:
        DescriptionError: the address is not a file's https address, or the file cannot be downloaded. The
            message says what to do instead.
    """
    try:
        address = urlsplit(link)
    except ValueError as error:
        raise DescriptionError(f"{link} is not an address: {error}") from error
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", unquote(address.path).rsplit("/", 1)[-1]).lstrip(".")
    if address.scheme.lower() != "https" or not address.hostname:
        raise DescriptionError(f"{link}: only https addresses are downloaded")
    if not name:
        raise DescriptionError(f"{link} names no file; give the address of a zip file")
    path = _cache_folder() / hashlib.sha256(link.encode()).hexdigest()[:12] / name
    if not path.is_file():
        _download(link, path, progress)
    return path


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("COSERVE_DATA") or "~/.cache/coserve").expanduser()
    except RuntimeError as error:
        raise DescriptionError(
            f"no folder for downloads: {error}; set COSERVE_DATA to one, or give the file itself"
        ) from error


def _download(link: str, path: Path, progress: Steps | None) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opener = urllib.request.build_opener(_HttpsAlone)
        with opener.open(link, timeout=TIMEOUT_S) as response, part.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0)
            done = 0
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                if progress is not None and total:
                    progress(f"downloading {path.name}", done, total)
        if done < total:
            raise ConnectionError(f"the connection ended after {done} of {total} bytes")
        # A damaged file must not stay in the cache.
        with open_published(part):
            pass
        part.replace(path)
    except NetworkError as error:
        raise NetworkError(str(error).replace(str(part), link)) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DescriptionError(
            f"{link} cannot be downloaded ({_reason(error)}); fetch it in a browser or on another machine, "
            f"and give the file: coserve export {path.name}"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}".strip()
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)
