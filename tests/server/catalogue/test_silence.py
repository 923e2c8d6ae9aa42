"""A repository whose file system stops answering, such as a network's."""

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coserve_server.catalogue import reading
from coserve_server.catalogue.reading import SilentError
from coserve_server.catalogue.reload import Reloader
from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from tests.server.catalogue.reloading import run, until, with_reloader
from tests.server.onnx_repository import add_version, write_repository


class Disk:
    """Reads that wait while the disk is silent."""

    def __init__(self, reloader: Reloader) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.asked = threading.Event()
        for name in ("_look", "_read"):
            setattr(reloader, name, self._wait_for(getattr(reloader, name)))

    def _wait_for(self, function: Callable[[], Any]) -> Callable[[], Any]:
        def wait() -> Any:
            self.asked.set()
            self.answers.wait()
            return function()

        return wait


def test_a_silent_file_system_is_named_and_changes_count_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(reading, "PATIENCE_S", 0.05)
    write_repository(tmp_path)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        disk = Disk(reloader)
        watching = asyncio.create_task(reloader.watch(0.01))
        disk.answers.clear()
        await until(lambda: "has not answered for" in caplog.text)
        assert str(tmp_path) in caplog.text
        assert (await run(engine, engine.ensembles["pair"]))[0].logits is not None
        add_version(tmp_path, "pair", 2)
        disk.answers.set()
        await until(lambda: engine.ensembles["pair"].version == "2")
        assert "answers again" in caplog.text
        watching.cancel()

    with_reloader(tmp_path, use)


def test_a_change_that_could_not_be_read_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reading, "PATIENCE_S", 0.05)
    write_repository(tmp_path)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        original = reloader._read
        silent = threading.Event()
        failed = []

        def fail_once() -> Any:
            if not failed:
                failed.append(True)
                silent.wait(20)
            return original()

        monkeypatch.setattr(reloader, "_read", fail_once)
        add_version(tmp_path, "pair", 2)
        watching = asyncio.create_task(reloader.watch(0.01))
        await until(lambda: engine.ensembles["pair"].version == "2")
        assert "nothing is reloaded: " in caplog.text
        silent.set()
        watching.cancel()

    with_reloader(tmp_path, use)


def test_a_call_to_load_gets_an_answer_and_the_server_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PATIENCE_S", 0.05)
    write_repository(tmp_path)
    disks: list[Disk] = []

    async def use(_: OnnxRuntimeEngine, reloader: Reloader) -> None:
        disks.append(Disk(reloader))
        disks[0].answers.clear()
        for _attempt in range(2):
            with pytest.raises(
                SilentError, match=r"has not answered for 0.05 s; is its file system reachable"
            ):
                await reloader.load("pair")
        assert disks[0].asked.is_set()

    with_reloader(tmp_path, use)
    # The event loop has ended, although the reads still wait.
    disks[0].answers.set()
