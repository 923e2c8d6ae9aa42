"""API keys: a file with one `name:role:digest` per line, which `coserve keys` writes and the server reads."""

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from coserve_server.errors import KeysError

Role = Literal["infer", "admin"]
ROLES: tuple[str, ...] = get_args(Role)
PREFIX = "coserve_"
"""Lets people and scanners of leaked secrets see what a key is for."""
KEY_BYTES = 32

_LINE = re.compile(
    rf"(?P<name>[\w.-]{{1,64}}):(?P<role>{'|'.join(ROLES)}):(?P<digest>[0-9a-f]{{64}})", re.ASCII
)
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key.

    Attributes:
        digest: SHA-256 of the key. Nobody can try out 256 random bits, so a digest made slow on purpose, as
            for passwords, would only slow down every request; nor are there equal keys for a salt to tell
            apart (NIST SP 800-63B, section 5.1.2.2, on look-up secrets of 112 bits or more).
    """

    name: str
    role: Role
    digest: bytes


def digest(key: bytes) -> bytes:
    """What is stored of a key, and compared."""
    return hashlib.sha256(key).digest()


def read_keys(file: Path) -> list[ApiKey]:
    """Read a file of keys; empty lines and those that start with # are left out.

    Raises:
        KeysError: it cannot be read, a line is not `name:role:digest`, or a name or a key occurs twice.
    """
    return list(_parse(file, _lines(file)).values())


def create_key(file: Path, name: str, role: Role) -> str:
    """Make a key and add its digest to the file, which need not exist yet.

    Returns:
        The key, which is stored nowhere.

    Raises:
        KeysError: the name is in use or not allowed, or the file cannot be read or written.
    """
    if not _NAME.fullmatch(name):
        raise KeysError(f"{name!r} is no name of a key: use at most 64 letters, digits, dots, - and _")
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    with _locked(file, os.O_CREAT):
        lines = _lines(file)
        if name in _parse(file, lines):
            raise KeysError(f"{file} already has a key {name!r}; revoke it first, or choose another name")
        _write(file, [*lines, f"{name}:{role}:{digest(key.encode()).hex()}"])
    return key


def revoke_key(file: Path, name: str) -> None:
    """Take a key out of the file.

    Raises:
        KeysError: there is none of this name, or the file cannot be read or written.
    """
    with _locked(file):
        lines = _lines(file)
        keys = _parse(file, lines)
        if name not in keys:
            raise KeysError(f"{file} has no key {name!r}; it has {', '.join(sorted(keys)) or 'none'}")
        _write(file, [line for line in lines if not line.startswith(f"{name}:")])


@contextlib.contextmanager
def _locked(file: Path, flags: int = 0) -> Iterator[None]:
    """Keep others from changing the file between reading and replacing it; readers need no lock."""
    # Where there is none, on Windows, keys can still be read.
    import fcntl

    target = file.resolve()
    while True:
        try:
            descriptor = os.open(target, os.O_RDWR | flags, 0o600)
        except OSError as error:
            done = "written" if flags else "read"
            raise KeysError(f"api_keys_file: {file} cannot be {done}: {error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever had the lock has put a new file in this one's place.
            if target.exists() and os.path.samestat(os.fstat(descriptor), target.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"api_keys_file: {file} cannot be read: {error}") from error


def _parse(file: Path, lines: list[str]) -> dict[str, ApiKey]:
    """The keys by name; errors name the line, but not what is in it, which may be a key by mistake."""
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.rstrip())
        if found is None:
            raise KeysError(
                f"api_keys_file: {file}, line {number} is not name:role:digest; use coserve keys create"
            )
        key = ApiKey(found["name"], found["role"], bytes.fromhex(found["digest"]))  # type: ignore[arg-type]
        if key.name in keys or any(key.digest == other.digest for other in keys.values()):
            raise KeysError(f"api_keys_file: {file}, line {number}: the name or the key occurs twice")
        keys[key.name] = key
    return keys


def _write(file: Path, lines: list[str]) -> None:
    """Replace the file whole, readable by its owner alone."""
    target = file.resolve()
    try:
        # Such a file has mode 0600 from the start.
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as temporary:
                temporary.writelines(f"{line}\n" for line in lines)
                temporary.flush()
                os.fsync(temporary.fileno())
                _keep_owner(target, temporary.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as error:
        raise KeysError(f"api_keys_file: {file} cannot be written: {error}") from error


def _keep_owner(target: Path, descriptor: int) -> None:
    """The server may run as another user than who makes keys, and must go on reading them."""
    with contextlib.suppress(FileNotFoundError):
        owner = target.stat()
        if (owner.st_uid, owner.st_gid) != (os.getuid(), os.getgid()):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
