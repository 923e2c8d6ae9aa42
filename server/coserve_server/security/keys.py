"""API keys in a file with one `name:role:digest` per line; `coserve keys` writes it, the server reads it."""

import contextlib
import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from coserve_server.errors import KeysError
from coserve_server.files import describe, read_text

Role = Literal["infer", "admin"]
ROLES: tuple[str, ...] = get_args(Role)
PREFIX = "coserve_"
"""Lets people and secret scanners recognise a key."""
KEY_BYTES = 32
MAX_FILE_BYTES = 2**24
"""A hundred thousand keys."""

OWNERS = stat.S_IRUSR | stat.S_IWUSR
READABLE = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH

_LINE = re.compile(
    rf"(?P<name>[\w.-]{{1,64}}):(?P<role>{'|'.join(ROLES)}):(?P<digest>[0-9a-f]{{64}})", re.ASCII
)
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class ApiKey:
    """The record of a key.

    Attributes:
        digest: SHA-256 of the key. Nobody can guess 256 random bits, so a slow password hash would only slow
            down requests; and no two keys are equal, so a salt is useless (NIST SP 800-63B, section 5.1.2.2,
            on look-up secrets of 112 bits or more).
    """

    name: str
    role: Role
    digest: bytes


def compute_digest(key: bytes) -> bytes:
    """Compute the digest by which a key is stored and found."""
    return hashlib.sha256(key).digest()


def read_keys(file: Path) -> list[ApiKey]:
    """Read a file of keys; empty lines and lines that start with # are skipped.

    Raises:
        KeysError: the file cannot be read, a line is not `name:role:digest`, or a name or a key occurs twice.
    """
    return list(_parse(file, _lines(file)).values())


def create_key(file: Path, name: str, role: Role) -> str:
    """Create a key, and add its digest to the file; the file is created if missing.

    Returns:
        The key, which is not stored anywhere.

    Raises:
        KeysError: the name is in use or not allowed, or the file cannot be read or written.
    """
    if not _NAME.fullmatch(name):
        raise KeysError(f"{name!r} is not a valid key name: use at most 64 letters, digits, dots, - and _")
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    with _locked(file, os.O_CREAT):
        lines = _lines(file)
        if name in _parse(file, lines):
            raise KeysError(f"{file} already has a key {name!r}; revoke it first, or choose another name")
        _write(file, [*lines, f"{name}:{role}:{compute_digest(key.encode()).hex()}"])
    return key


def revoke_key(file: Path, name: str) -> None:
    """Remove a key from the file.

    Raises:
        KeysError: no key has this name, or the file cannot be read or written.
    """
    with _locked(file):
        lines = _lines(file)
        keys = _parse(file, lines)
        if name not in keys:
            raise KeysError(f"{file} has no key {name!r}; it has {', '.join(sorted(keys)) or 'none'}")
        _write(file, [line for line in lines if not line.startswith(f"{name}:")])


@contextlib.contextmanager
def _locked(file: Path, flags: int = 0) -> Iterator[None]:
    """Keep other processes from changing the file between reading and replacing it; readers need no lock."""
    # Imported here, since Windows lacks it and can still read keys.
    import fcntl

    # `Path.resolve` raises errors of its own for loops.
    target = Path(os.path.realpath(file))
    done = "written" if flags else "read"
    while True:
        try:
            descriptor = os.open(target, os.O_RDWR | flags, 0o600)
        except OSError as error:
            raise KeysError(f"api_keys_file: {file} cannot be {done}: {describe(error)}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                raise KeysError(f"api_keys_file: {file} cannot be locked: {describe(error)}") from error
            # The previous holder of the lock may have replaced the file.
            if target.exists() and os.path.samestat(os.fstat(descriptor), target.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def _lines(file: Path) -> list[str]:
    try:
        return read_text(file, MAX_FILE_BYTES).splitlines()
    except OSError as error:
        raise KeysError(f"api_keys_file: {file} cannot be read: {describe(error)}") from error


def _parse(file: Path, lines: list[str]) -> dict[str, ApiKey]:
    """Parse the keys, by name; errors do not quote a line, which may be a key by mistake."""
    keys: dict[str, ApiKey] = {}
    digests: set[bytes] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.rstrip())
        if found is None:
            raise KeysError(
                f"api_keys_file: {file}, line {number} is not name:role:digest; use coserve keys create"
            )
        key = ApiKey(found["name"], found["role"], bytes.fromhex(found["digest"]))  # type: ignore[arg-type]
        if key.name in keys or key.digest in digests:
            raise KeysError(f"api_keys_file: {file}, line {number}: the name or the key occurs twice")
        keys[key.name] = key
        digests.add(key.digest)
    return keys


def _write(file: Path, lines: list[str]) -> None:
    """Replace the file atomically; only its owner may read a new one."""
    target = Path(os.path.realpath(file))
    try:
        # mkstemp creates the file with mode 0600.
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as temporary:
                temporary.writelines(f"{line}\n" for line in lines)
                temporary.flush()
                os.fsync(temporary.fileno())
                _keep_access(target, temporary.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as error:
        raise KeysError(f"api_keys_file: {file} cannot be written: {describe(error)}") from error


def _keep_access(target: Path, descriptor: int) -> None:
    """Keep who may read the file: the server may run as a different user from the one who creates keys."""
    with contextlib.suppress(FileNotFoundError):
        status = target.stat()
        if (status.st_uid, status.st_gid) != (os.getuid(), os.getgid()):
            os.fchown(descriptor, status.st_uid, status.st_gid)
        # Nobody else may write it.
        os.fchmod(descriptor, status.st_mode & READABLE | OWNERS)
