"""Finds out when the files of a model repository have stopped changing."""

import logging
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from coserve_server.ensembles.ensemble import Stamp
from coserve_server.files import printable

RESTLESS_S = 60.0
"""Time after which a folder whose files still change no longer holds back the others."""

Folders = Mapping[str, frozenset[object]]
"""Stamps of files by their model's folder; if there are none, the reason, under an empty name."""

_UNKNOWN: frozenset[object] = frozenset()
"""Differs from the stamps of any folder, and from those of one that is gone."""

logger = logging.getLogger(__name__)


def group_stamps(repository: Path, stamps: Collection[Stamp] | str) -> Folders:
    """Return stamps by the printable name of the model's folder.

    Args:
        stamps: or why the repository cannot be read.
    """
    if isinstance(stamps, str):
        return {"": frozenset([(stamps,)])}
    # Stamps' paths begin with the repository's as it was given, even if that is a dot.
    begin = len(os.path.join(repository, ""))  # noqa: PTH118
    folders: dict[str, set[object]] = {}
    for stamp in stamps:
        name = printable(stamp[0][begin:].split(os.sep, 1)[0])
        folders.setdefault(name, set()).add(stamp)
    return {name: frozenset(found) for name, found in folders.items()}


class Settling:
    """Follows the files of a repository from one look to the next.

    Changes count once no file differs from the look before, so that folders that are written one after
    another count together. Only a folder that has differed in every look for `RESTLESS_S` is not waited for.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._taken: Folders = {}
        self._now: Folders = {}
        self._restless: frozenset[str] = frozenset()
        self._since: dict[str, float] = {}
        """Since when folders have differed in every look."""
        self._waits_since: float | None = None
        self._named: set[str | None] = set()
        """Folders that the log has named as restless; None for the repository."""

    def start(self, stamps: Collection[Stamp] | str) -> None:
        """Note the look before what has been read at the start."""
        self._taken = self._now = group_stamps(self._repository, stamps)

    def note(self, stamps: Collection[Stamp] | str) -> frozenset[str] | None:
        """Note a look.

        Returns:
            None if there is nothing to read; else the folders that still change, whose turn comes later.
        """
        before, self._now = self._now, group_stamps(self._repository, stamps)
        clock = time.monotonic()
        changing = _find_changed(before, self._now)
        self._since = {name: self._since.get(name, clock) for name in changing}
        self._restless = frozenset(name for name, since in self._since.items() if _is_long(since, clock))
        waits = bool(changing - self._restless)
        self._waits_since = (self._waits_since or clock) if waits else None
        self._name_restless(before, clock)
        changed = _find_changed(self._taken, self._now) - self._restless
        return None if waits or not changed else self._restless

    def take(self) -> None:
        """Note that what the last look saw has been read, but for the folders that still changed."""
        # Once these are still, all that they are part of is due, even if they are as before.
        self._taken = {**self._now, **dict.fromkeys(self._restless, _UNKNOWN)}

    def _name_restless(self, before: Folders, clock: float) -> None:
        """Log once which files keep others from being reloaded, and since when."""
        since: dict[str | None, float] = {name: self._since[name] for name in self._restless}
        if self._waits_since is not None and _is_long(self._waits_since, clock):
            since[None] = self._waits_since
        for name in since.keys() - self._named:
            names = self._since if name is None else [name]
            differing = {stamp for one in names for stamp in _get(before, one) ^ _get(self._now, one)}
            held = "nothing" if name is None else f"no ensemble with files in {name}"
            logger.warning(
                "%s: files have changed at every check for %.0f s, now %s; %s is reloaded until they stop",
                self._repository,
                clock - since[name],
                printable(min(str(stamp[0]) for stamp in differing)),  # type: ignore[index]
                held,
            )
        self._named = set(since)


def _is_long(since: float, clock: float) -> bool:
    return clock - since >= RESTLESS_S


def _get(folders: Folders, name: str) -> frozenset[object]:
    return folders.get(name, frozenset())


def _find_changed(before: Folders, now: Folders) -> set[str]:
    return {name for name in {*before, *now} if before.get(name) != now.get(name)}
