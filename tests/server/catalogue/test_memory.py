"""Ensembles that do not fit into memory are not loaded."""

import asyncio
from pathlib import Path

import pytest

from coserve_server.catalogue import reload
from coserve_server.catalogue.catalogue import Catalogue
from coserve_server.catalogue.reload import Reloader
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from coserve_server.errors import RepositoryError
from coserve_server.machine.cores import Cores
from coserve_server.settings import load_settings
from tests.server.catalogue.reloading import with_reloader
from tests.server.onnx_repository import add_version, write_repository


def test_what_does_not_fit_into_memory_is_not_even_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_repository(tmp_path)
    available = [100.0]
    monkeypatch.setattr(reload, "available_bytes", lambda: available[0])

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        assert engine.ensembles == {}
        available[0] = 2**40
        await reloader.refresh()
        before = engine.ensembles["pair"]
        available[0] = 40 * 2**20
        await reloader.refresh()
        assert caplog.records[1:] == [], "a version that is already served needs no memory"
        add_version(tmp_path, "pair", 2)
        await reloader.refresh()
        (record,) = caplog.records[1:]
        assert record.getMessage() == (
            "pair cannot be loaded; the old version stays: loading it takes about 64 MiB, "
            "but only 40 MiB are available"
        )
        assert engine.ensembles["pair"] is before
        assert "40 MiB are available" in reloader.catalogue.rejected["pair"]
        with pytest.raises(RepositoryError, match="40 MiB are available"):
            await reloader.load("pair")
        available[0] = 2**40
        await reloader.load("pair")
        assert engine.ensembles["pair"].version == "2"
        assert reloader.outcomes == {("pair", "out-of-memory"): 3, ("pair", "served"): 2}

    with_reloader(tmp_path, use)


def test_what_is_served_with_smaller_batches_needs_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repository(tmp_path)

    async def use() -> None:
        engine = OnnxRuntimeEngine(EngineOptions(max_batch_size=1), Cores(2, None), {})
        reloader = Reloader(tmp_path, engine, Catalogue(engine, load_settings(repository=tmp_path)))
        await reloader.refresh()
        monkeypatch.setattr(reload, "available_bytes", lambda: 0)
        await reloader.refresh()
        assert reloader.outcomes == {("pair", "served"): 1}
        await engine.close()

    asyncio.run(use())


def test_copies_need_memory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_repository(tmp_path)

    async def use() -> None:
        monkeypatch.setattr(reload, "loading_bytes", lambda _: 30 * 2**20)
        monkeypatch.setattr(reload, "available_bytes", lambda: 59 * 2**20)
        engine = OnnxRuntimeEngine(EngineOptions(threads=1), Cores(4, None), {})
        reloader = Reloader(tmp_path, engine, Catalogue(engine, load_settings(repository=tmp_path)))
        with pytest.raises(RepositoryError, match="takes about 60 MiB, but only 59 MiB are available"):
            await reloader.load("pair")
        await engine.close()

    asyncio.run(use())
