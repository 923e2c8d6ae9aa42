"""Hot reload: serves changes of the model repository while the embedded engine runs."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from coserve_server.catalogue.attempts import make_attempt
from coserve_server.catalogue.reading import SilentError, read_patiently, read_soon
from coserve_server.catalogue.settling import Folders, Settling, group_stamps
from coserve_server.engines.embedded.loading import loading_bytes
from coserve_server.ensembles.ensemble import Ensemble, Stamp
from coserve_server.ensembles.files import read_stamps
from coserve_server.ensembles.repository import RepositoryContents, read_contents
from coserve_server.errors import (
    OutOfMemoryError,
    RepositoryError,
    StartupError,
    UnknownModelError,
)
from coserve_server.files import describe, printable
from coserve_server.machine.memory import available_bytes

if TYPE_CHECKING:
    from coserve_server.catalogue.catalogue import Catalogue
    from coserve_server.engines.embedded.engine import EmbeddedEngine

logger = logging.getLogger(__name__)

Turn = Callable[[], AbstractAsyncContextManager[None]]


class Reloader:
    """Keeps the embedded engine in step with the files of its model repository.

    Each ensemble is replaced on its own, all members at once. If that fails, the old version stays, the
    catalogue's `rejected` says why, and the next change of the files is a new attempt.

    Attributes:
        outcomes: number of attempts by model name and outcome: `served` (a new version), `removed`, `failed`,
            or `out-of-memory` (refused before loading).
    """

    def __init__(
        self,
        folder: Path,
        engine: "EmbeddedEngine",
        catalogue: "Catalogue",
        turn: Turn = nullcontext,
        unloaded: Collection[str] = (),
    ) -> None:
        """Serve the ensembles in a folder.

        Args:
            turn: context of each replacement, so that processes on one machine load one after another.
            unloaded: names of ensembles not to serve before a client loads them.
        """
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self._folder = folder
        self._turn = turn
        self._engine = engine
        self.catalogue = catalogue
        self._unloaded = set(unloaded)
        self._settling = Settling(folder)
        self._folders: Folders = {}
        self._read_ns = 0
        self._left_out: Mapping[str, str] = {}
        self._lock = asyncio.Lock()

    async def start(self, exit_on_error: bool | None = None) -> None:
        """Serve the sound ensembles; log why the others are not served, and note it in the catalogue.

        Args:
            exit_on_error: whether to raise if an ensemble cannot be served; None: only if none can.

        Raises:
            StartupError: nothing can be served, or, if `exit_on_error` is true, not everything.
        """
        # Before reading: what changes meanwhile is read again.
        self._read_ns = time.monotonic_ns()
        stamps = await read_patiently(self._folder, self._look)
        self._settling.start(stamps)
        self._folders = group_stamps(self._folder, stamps)
        try:
            contents = await read_patiently(self._folder, self._read)
        except RepositoryError as error:
            if exit_on_error is not False:
                raise
            logger.error("nothing is served: %s", error)
            self.catalogue.unreadable = printable(str(error))
            return
        errors: dict[str, StartupError] = {
            name: RepositoryError(text)
            for name, text in contents.errors.items()
            if name not in self._unloaded
        }
        wanted = {name: known for name, known in contents.versions.items() if name not in self._unloaded}
        self._engine.limit_copies(ensemble for versions in wanted.values() for ensemble in versions)
        for name, versions in wanted.items():
            if fault := await self._serve_first(name, versions):
                errors[name] = fault
        fatal = exit_on_error is None and not self._engine.ensembles
        if errors and (exit_on_error or fatal):
            texts = dict.fromkeys(map(str, errors.values()))
            first = next(iter(errors.values()))
            raise first if len(texts) == 1 else RepositoryError("; ".join(texts))
        self.catalogue.rejected = {name: printable(str(error)) for name, error in errors.items()}
        for name in {*wanted, *errors}:
            self._note_attempt(name, contents)
        for name, reason in self.catalogue.rejected.items():
            logger.error("%s is not served: %s", name, reason)
        self._list_unloaded(contents)
        self._report_left_out(contents)

    async def watch(self, interval_s: float) -> None:
        """Poll the files, and serve changes once the files have stopped changing; never returns."""
        while True:
            # A file that is still being written differs from one poll to the next.
            held = self._settling.note(await read_patiently(self._folder, self._look))
            if held is not None:
                try:
                    await self.refresh(held)
                    self._settling.take()
                # Tried again when it answers.
                except SilentError as error:
                    logger.error("nothing is reloaded: %s", error)
                # A bug must not stop the polling.
                except Exception:
                    logger.exception("reloading %s failed", self._folder)
                    self._settling.take()
            await asyncio.sleep(interval_s)

    async def refresh(self, held: Collection[str] = ()) -> None:
        """Serve all changes; log what is wrong, and note it in the catalogue.

        Args:
            held: names of models; what is made of them stays as it is.

        Raises:
            SilentError: the file system does not answer.
        """
        async with self._lock:
            try:
                contents = await self._read_soon()
            except SilentError:
                raise
            except RepositoryError as error:
                # More likely an unmounted volume than the wish to serve nothing.
                logger.error("nothing is reloaded: %s", error)
                self.catalogue.unreadable = printable(str(error))
                return
            self.catalogue.unreadable = None
            self._report_left_out(contents)
            self._list_unloaded(contents)
            known = {*self._engine.ensembles, *self.catalogue.rejected}
            for name in sorted({*contents.versions, *contents.errors, *known} - self._unloaded):
                if contents.parts.get(name, {name}).isdisjoint(held):
                    await self._try_replace(name, contents)

    async def load(self, name: str) -> None:
        """Serve an ensemble as its files are now; return once it is served.

        Raises:
            UnknownModelError: there is no such ensemble.
            RepositoryError: the ensemble is broken or cannot be loaded; the old version stays, or it stays
                unloaded.
        """
        async with self._lock:
            contents = await self._read_soon()
            if name not in contents.versions and name not in contents.errors:
                raise UnknownModelError(f"{self._folder} has no ensemble {name!r}")
            if error := await self._try_replace(name, contents):
                raise RepositoryError(error)
            self._unloaded.discard(name)
            self._list_unloaded(contents)

    async def unload(self, name: str) -> None:
        """Stop serving an ensemble until it is loaded again, whatever happens to its files.

        Requests in progress still get their answers.

        Raises:
            UnknownModelError: the ensemble is not served.
        """
        async with self._lock:
            if name not in self._engine.ensembles:
                raise UnknownModelError(f"no ensemble {name!r} is served")
            self._unloaded.add(name)
            await self._replace(name, ())
            self.catalogue.unloaded = sorted({*self.catalogue.unloaded, name})

    def _list_unloaded(self, contents: RepositoryContents) -> None:
        self.catalogue.unloaded = sorted(self._unloaded & {*contents.versions, *contents.errors})

    async def _serve_first(self, name: str, versions: Sequence[Ensemble]) -> StartupError | None:
        """Serve an ensemble at the start; return why that failed, if it did."""
        try:
            await self._engine.replace(name, versions)
        except StartupError as error:
            return error
        return None

    async def _try_replace(self, name: str, contents: RepositoryContents) -> str | None:
        """Serve a model as the repository has it; return why that failed, if it did."""
        try:
            if name in contents.errors:
                raise RepositoryError(contents.errors[name])
            await self._replace(name, contents.versions.get(name, ()))
            self._note_attempt(name, contents)
        # Whatever is wrong with one ensemble must not keep the others from being reloaded.
        except Exception as error:
            reason = printable(str(error) or type(error).__name__)
            stays = "; the old version stays" if name in self._engine.ensembles else ""
            known = isinstance(error, StartupError)
            logger.error("%s cannot be loaded%s: %s", name, stays, reason, exc_info=not known)
            self.outcomes[name, "out-of-memory" if isinstance(error, OutOfMemoryError) else "failed"] += 1
            # One that stays unloaded is not read again, so the reason would outlive a repair.
            if name not in self._unloaded:
                self.catalogue.rejected = {**self.catalogue.rejected, name: reason}
            if not stays:
                self._note_attempt(name, contents)
            return reason
        return None

    async def _replace(self, name: str, versions: Sequence[Ensemble]) -> None:
        async with self._turn():
            await asyncio.to_thread(self._check_memory, name, versions)
            replaced = await self._engine.replace(name, versions)
        if replaced:
            self.outcomes[name, "served" if versions else "removed"] += 1
            numbers = ", ".join(ensemble.version for ensemble in versions)
            logger.info("%s: serving %s", name, f"version {numbers}" if numbers else "no version any more")
        rejected = self.catalogue.rejected
        self.catalogue.rejected = {other: error for other, error in rejected.items() if other != name}

    def _check_memory(self, name: str, versions: Sequence[Ensemble]) -> None:
        """Refuse a load that does not fit, before the kernel kills the server."""
        unserved = self._engine.unserved(name, versions)
        needed = sum(loading_bytes(one) * self._engine.planned_copies(one) for one in unserved)
        if needed and needed > (available := available_bytes()):
            raise OutOfMemoryError(
                f"loading it takes about {needed >> 20} MiB, but only {int(available) >> 20} MiB are "
                "available"
            )

    def _look(self) -> frozenset[Stamp] | str:
        try:
            return read_stamps(self._folder)
        except OSError as error:
            return describe(error)

    def _read(self) -> RepositoryContents:
        return read_contents(self._folder)

    async def _read_soon(self) -> RepositoryContents:
        """Look at the files before reading them, so that what changes meanwhile counts as other files."""
        began_ns = time.monotonic_ns()
        stamps, contents = await read_soon(self._folder, lambda: (self._look(), self._read()))
        self._folders = group_stamps(self._folder, stamps)
        self._read_ns = began_ns
        return contents

    def _note_attempt(self, name: str, contents: RepositoryContents) -> None:
        """Note an ensemble's files; forget those of ensembles that are neither served nor rejected now."""
        attempt = make_attempt(self._folders, contents.parts.get(name, {name}), self._read_ns)
        attempts = {**self.catalogue.attempts, name: attempt}
        known = {*self._engine.ensembles, *self.catalogue.rejected}
        self.catalogue.attempts = {one: attempts[one] for one in attempts if one in known}

    def _report_left_out(self, contents: RepositoryContents) -> None:
        """Log once which folders are not models."""
        if contents.left_out != self._left_out:
            self._left_out = contents.left_out
            folders = ", ".join(f"{name} ({reason})" for name, reason in contents.left_out.items())
            logger.info("%s: folders that are not models: %s", self._folder, folders or "none")
