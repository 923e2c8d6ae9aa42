"""Starting with a repository of which only some ensembles are sound."""

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from coserve_server.catalogue.catalogue import Catalogue
from coserve_server.catalogue.reload import Reloader
from coserve_server.core import open_core
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from coserve_server.errors import NoQuorumError, RepositoryError, StartupError
from coserve_server.machine.cores import Cores
from coserve_server.settings import load_settings
from tests.server.onnx_repository import write_repository

BROKEN: dict[str, Callable[[Path], object]] = {
    "no such field": lambda folder: (folder / "rotten/config.pbtxt").write_text("colour: 1"),
    "no version folder": lambda folder: (folder / "rotten/1").rmdir(),
    "no network": lambda folder: (folder / "rotten_member1/1/model.onnx").write_bytes(b"no"),
}


def start(folder: Path, exit_on_error: bool | None = None) -> tuple[dict[str, str], set[str]]:
    """Return what is not served, and what is after its repair."""

    async def go() -> tuple[dict[str, str], set[str]]:
        engine = OnnxRuntimeEngine(EngineOptions(), Cores(2, None), {})
        reloader = Reloader(folder, engine, Catalogue(engine, load_settings(repository=folder)))
        try:
            await reloader.start(exit_on_error)
            assert list(engine.ensembles) == ["pair"]
            refused = dict(reloader.catalogue.not_served)
            for name in ("rotten", "rotten_member0", "rotten_member1", "rotten_mean"):
                shutil.rmtree(folder / name)
            write_repository(folder, "rotten")
            await reloader.refresh()
            assert reloader.outcomes == {("rotten", "served"): 1}
            return refused, set(engine.ensembles)
        finally:
            await engine.close()

    return asyncio.run(go())


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_at_the_start_does_not_keep_the_rest_from_being_served(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "notes").mkdir()
    write_repository(write_repository(tmp_path, "pair"), "rotten")
    BROKEN[kind](tmp_path)
    with pytest.raises(StartupError) as strict:
        start(tmp_path, exit_on_error=True)
    caplog.set_level("INFO")
    refused, served = start(tmp_path)
    assert refused == {"rotten": str(strict.value)}
    assert served == {"pair", "rotten"}
    assert f"rotten is not served: {strict.value}" in caplog.messages
    assert f"{tmp_path}: folders that are not models: notes (no config.pbtxt)" in caplog.messages


def test_what_the_start_has_read_is_not_read_again_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repository(tmp_path)

    async def go() -> None:
        engine = OnnxRuntimeEngine(EngineOptions(), Cores(2, None), {})
        reloader = Reloader(tmp_path, engine, Catalogue(engine, load_settings(repository=tmp_path)))
        await reloader.start()
        looks = 0
        refreshes = 0
        look = reloader._look

        def count() -> object:
            nonlocal looks
            looks += 1
            return look()

        async def refresh(_: object) -> None:
            nonlocal refreshes
            refreshes += 1

        monkeypatch.setattr(reloader, "_look", count)
        monkeypatch.setattr(reloader, "refresh", refresh)
        watching = asyncio.create_task(reloader.watch(0))
        while looks < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert refreshes == 0
        os.utime(tmp_path / "pair/config.pbtxt", ns=(1, 1))
        while refreshes == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        watching.cancel()
        await engine.close()

    asyncio.run(go())


def test_a_start_with_nothing_to_serve_fails_with_every_reason(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_repository(tmp_path, name)
        (tmp_path / f"{name}_member0/1/model.onnx").write_bytes(b"no")
    with pytest.raises(RepositoryError, match=r"^ensemble one: .*cannot be loaded.*; ensemble two: .*"):
        start(tmp_path)


def rot(folder: Path) -> None:
    write_repository(folder, "rotten")
    BROKEN["no network"](folder)


NOTHING_SOUND: dict[str, Callable[[Path], object]] = {
    "no folder": lambda folder: None,
    "no model": lambda folder: folder.mkdir(),
    "no sound model": rot,
}


@pytest.mark.parametrize("kind", NOTHING_SOUND)
def test_a_start_that_no_error_ends_waits_for_something_to_serve(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    NOTHING_SOUND[kind](folder)

    async def go() -> None:
        engine = OnnxRuntimeEngine(EngineOptions(), Cores(2, None), {})
        catalogue = Catalogue(engine, load_settings(repository=folder))
        reloader = Reloader(folder, engine, catalogue)
        try:
            with pytest.raises(StartupError) as refused:
                await reloader.start()
            await reloader.start(exit_on_error=False)
            reason = str(refused.value)
            assert catalogue.faults() == ["no ensemble is loaded", reason]
            for name in (None, "rotten"):
                with pytest.raises(NoQuorumError, match=re.escape(reason)):
                    catalogue.ensemble(name)
            watching = asyncio.create_task(reloader.watch(0.01))
            write_repository(write_repository(tmp_path / "built", "pair"), "rotten")
            shutil.copytree(tmp_path / "built", folder, dirs_exist_ok=True)
            while set(engine.ensembles) != {"pair", "rotten"}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert catalogue.faults() == []
            assert catalogue.unreadable is None
            watching.cancel()
        finally:
            await engine.close()

    asyncio.run(go())


def test_what_clients_had_unloaded_is_not_loaded_however_broken(tmp_path: Path) -> None:
    write_repository(write_repository(tmp_path, "pair"), "rotten")
    BROKEN["no such field"](tmp_path)
    settings = load_settings(repository=tmp_path, default_model="pair", exit_on_error=True)

    async def go() -> None:
        async with open_core(settings, Cores(1, None), unloaded={"pair", "rotten", "gone"}) as core:
            catalogue = core.classifier.catalogue
            assert (catalogue.ensembles, catalogue.rejected) == ({}, {})
            assert catalogue.unloaded == ["pair", "rotten"]
            assert core.control is not None
            await core.control.load("pair")
            assert list(catalogue.ensembles) == ["pair"]

    asyncio.run(go())
