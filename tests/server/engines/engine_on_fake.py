"""Runs the engine `triton` over fake servers, and checks that it leaves nothing behind."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coserve_server.engines.base import Images
from coserve_server.engines.triton.engine import TritonEngine
from coserve_server.outcomes import MemberRun
from coserve_server.settings import load_settings
from tests.server.engines.fake_triton import FakeTriton

Use = Callable[[TritonEngine, list[FakeTriton]], Awaitable[None]]
IMAGES: Images = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)


def with_engine(repository: Path, use: Use, servers: int = 1, **settings: Any) -> None:
    """Run `use`, and check that no task of the engine is left."""

    async def run() -> None:
        fakes = [FakeTriton(repository) for _ in range(servers)]
        urls = [await fake.start() for fake in fakes]
        engine = await TritonEngine.connect(
            load_settings(engine="triton", triton_url=",".join(urls), triton_refresh_ms=20, **settings)
        )
        try:
            await until(lambda: all(endpoint.error is None for endpoint in engine._endpoints))
            await asyncio.wait_for(use(engine, fakes), 60)
            await until(lambda: engine_tasks() - POLLING == {"Servers._watch", "Servers._follow"})
        finally:
            await engine.close()
            for fake in fakes:
                await fake.stop()
        await until(lambda: not engine_tasks())

    asyncio.run(run())


POLLING = {"UnaryUnaryCall._invoke"}
"""Calls in progress."""


def engine_tasks() -> set[str]:
    """Return the names of the engine's tasks; the fake servers run in the same loop."""
    names = {str(task.get_coro().__qualname__) for task in asyncio.all_tasks()}
    return {
        name for name in names if name.startswith(("TritonEngine", "Servers", "Endpoint", "UnaryUnaryCall"))
    }


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("the condition has not become true")


async def infer(engine: TritonEngine, batch: Images = IMAGES) -> list[MemberRun]:
    return list(await asyncio.gather(*engine.start(engine.ensembles["pair"], batch)))


def ready(engine: TritonEngine) -> int:
    ensemble = engine.ensembles.get("pair")
    return len(engine.ready_members(ensemble)) if ensemble else 0
