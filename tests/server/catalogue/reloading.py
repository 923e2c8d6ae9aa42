"""Reloads a repository without a server."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from coserve_server.catalogue.catalogue import Catalogue
from coserve_server.catalogue.reload import Reloader
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from coserve_server.machine.cores import Cores
from coserve_server.outcomes import MemberRun
from coserve_server.settings import load_settings

T = TypeVar("T")
IMAGE = np.ones((1, 3, 8, 8), np.float32)


def with_reloader(folder: Path, use: Callable[[OnnxRuntimeEngine, Reloader], Awaitable[T]]) -> T:
    async def go() -> T:
        engine = OnnxRuntimeEngine(EngineOptions(), Cores(2, None), {})
        reloader = Reloader(folder, engine, Catalogue(engine, load_settings(repository=folder)))
        await reloader.refresh()
        try:
            return await use(engine, reloader)
        finally:
            await engine.close()

    return asyncio.run(go())


def lanes() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("pair-")}


async def run(engine: OnnxRuntimeEngine, ensemble: object) -> list[MemberRun]:
    return list(await asyncio.gather(*engine.start(ensemble, IMAGE)))  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it has not become true")
