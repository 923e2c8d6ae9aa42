"""Takes over what changes in the model repository while the embedded engine serves."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coserve_server.engines.embedded.loading import loading_bytes
from coserve_server.ensembles.ensemble import Ensemble, Stamp
from coserve_server.ensembles.repository import Contents, read_contents, read_stamps
from coserve_server.errors import EngineError, OutOfMemoryError, RepositoryError, UnknownModelError
from coserve_server.machine.memory import available_bytes

if TYPE_CHECKING:
    from coserve_server.engines.embedded.engine import EmbeddedEngine

logger = logging.getLogger(__name__)


class Reloader:
    """Keeps what the embedded engine serves in step with the files of its model repository.

    Each ensemble is taken over by itself, all of its members at once. Where that fails, what was served still
    is, the engine's `load_errors` say why, and the next change of the files is a new try.

    Attributes:
        outcomes: how often an ensemble, by its name, was `served` anew, `removed`, or left as it was because
            that `failed`, or there was too little memory to try (`out-of-memory`).
    """

    def __init__(self, folder: Path, engine: "EmbeddedEngine") -> None:
        self._folder, self._engine = folder, engine
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self._unloaded: set[str] = set()
        self._one_at_a_time = asyncio.Lock()

    async def watch(self, interval_s: float) -> None:
        """Look at the files again and again, and take over changes that have come to rest; never returns."""
        taken: object = None
        before: object = None
        while True:
            found = await asyncio.to_thread(self._look)
            # What is still being written differs from one look to the next.
            if found == before != taken:
                try:
                    await self.refresh()
                # A fault of ours must not end the watch.
                except Exception:
                    logger.exception("looking at %s failed", self._folder)
                taken = found
            before = found
            await asyncio.sleep(interval_s)

    async def refresh(self) -> None:
        """Take over whatever has changed; what is wrong is logged, and kept in the engine's `load_errors`."""
        async with self._one_at_a_time:
            try:
                contents = await asyncio.to_thread(read_contents, self._folder)
            except RepositoryError as error:
                # More likely a volume that is not mounted than the wish to serve nothing.
                logger.error("what is served stays as it is: %s", error)
                return
            known = {*self._engine.ensembles, *self._engine.load_errors}
            for name in sorted({*contents.versions, *contents.errors, *known} - self._unloaded):
                await self._take_over(name, contents)

    async def load(self, name: str) -> None:
        """Serve an ensemble as its files are now; return once that is so.

        Raises:
            UnknownModelError: there is no such ensemble.
            RepositoryError: it is broken, or does not load; what was served of that name still is.
        """
        async with self._one_at_a_time:
            contents = await asyncio.to_thread(read_contents, self._folder)
            if name not in contents.versions and name not in contents.errors:
                raise UnknownModelError(f"{self._folder} has no ensemble {name!r}")
            self._unloaded.discard(name)
            if error := await self._take_over(name, contents):
                raise RepositoryError(error)

    async def unload(self, name: str) -> None:
        """Stop serving an ensemble, whatever happens to its files, until it is loaded again.

        Requests in progress still get their answers.

        Raises:
            UnknownModelError: it is not served.
        """
        async with self._one_at_a_time:
            if name not in self._engine.ensembles:
                raise UnknownModelError(f"no ensemble {name!r} is served")
            self._unloaded.add(name)
            await self._replace(name, ())

    async def _take_over(self, name: str, contents: Contents) -> str | None:
        """Serve a model as the repository has it, or say why that cannot be."""
        try:
            if name in contents.errors:
                raise RepositoryError(contents.errors[name])
            await self._replace(name, contents.versions.get(name, ()))
        except (RepositoryError, EngineError, OSError) as error:
            goes_on = "; what was served of it still is" if name in self._engine.ensembles else ""
            logger.error("%s cannot be loaded%s: %s", name, goes_on, error)
            self.outcomes[name, "out-of-memory" if isinstance(error, OutOfMemoryError) else "failed"] += 1
            self._engine.load_errors = {**self._engine.load_errors, name: str(error)}
            return str(error)
        return None

    async def _replace(self, name: str, versions: Sequence[Ensemble]) -> None:
        await asyncio.to_thread(self._check_memory, name, versions)
        if await self._engine.replace(name, versions):
            self.outcomes[name, "served" if versions else "removed"] += 1
            numbers = ", ".join(ensemble.version for ensemble in versions)
            logger.info("%s: serving %s", name, f"version {numbers}" if numbers else "no version any more")
        errors = self._engine.load_errors
        self._engine.load_errors = {other: error for other, error in errors.items() if other != name}

    def _check_memory(self, name: str, versions: Sequence[Ensemble]) -> None:
        """Rather refuse what does not fit than have the kernel kill the server."""
        needed = sum(map(loading_bytes, self._engine.unserved(name, versions)))
        if needed and needed > (available := available_bytes()):
            raise OutOfMemoryError(
                f"loading it takes about {needed >> 20} MiB, and {int(available) >> 20} MiB are available"
            )

    def _look(self) -> frozenset[Stamp] | str:
        try:
            return read_stamps(self._folder)
        except OSError as error:
            return str(error)
