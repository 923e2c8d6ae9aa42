"""Runs an embedded engine over a repository."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from coserve_server.engines.base import Images
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import create_engine
from coserve_server.ensembles.repository import read_repository
from coserve_server.machine.cores import Cores
from coserve_server.outcomes import MemberRun

T = TypeVar("T")
TWO = Cores(2, None)


def with_engine(
    folder: Path,
    use: Callable[[EmbeddedEngine], Awaitable[T]],
    options: EngineOptions = EngineOptions(),  # noqa: B008  # it does not change
    cores: Cores = TWO,
) -> T:
    async def run() -> T:
        engine = create_engine(options, cores, read_repository(folder))
        try:
            return await asyncio.wait_for(use(engine), 60)
        finally:
            await engine.close()

    return asyncio.run(run())


async def infer(engine: EmbeddedEngine, batch: Images) -> list[MemberRun]:
    return list(await asyncio.gather(*engine.start(engine.ensembles["pair"], batch)))
