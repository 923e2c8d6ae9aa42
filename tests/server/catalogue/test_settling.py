"""Files of a repository that keep changing, and what waits for them."""

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from coserve_server.catalogue import settling
from coserve_server.catalogue.reload import Reloader
from coserve_server.catalogue.settling import Settling
from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from coserve_server.ensembles.ensemble import Stamp
from coserve_server.ensembles.files import read_stamps
from tests.server.catalogue.reloading import until, with_reloader
from tests.server.onnx_repository import add_version, write_repository


def test_a_file_that_never_stops_changing_holds_back_its_own_ensemble_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(settling, "RESTLESS_S", 0.3)
    for name in ("pair", "single"):
        write_repository(tmp_path, name)
    restless = tmp_path / "pair_member1" / "1" / "notes.txt"
    grows = True

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        nonlocal grows
        look = reloader._look

        def grow_and_look() -> frozenset[Stamp] | str:
            if grows:
                with restless.open("a") as file:
                    file.write("x")
            return look()

        reloader._look = grow_and_look  # type: ignore[method-assign]
        watching = asyncio.create_task(reloader.watch(0.05))

        def served() -> dict[str, str]:
            return {name: ensemble.version for name, ensemble in engine.ensembles.items()}

        for name in ("pair", "single"):
            add_version(tmp_path, name, 2)
        await until(lambda: served()["single"] == "2")
        shutil.rmtree(tmp_path / "single")
        await until(lambda: "single" not in served())
        assert served() == {"pair": "1"}
        assert reloader.catalogue.rejected == {}
        (message,) = caplog.messages
        assert message.startswith(f"{tmp_path}: files have changed at every check for ")
        assert message.endswith(
            f" s, now {restless}; no ensemble with files in pair_member1 is reloaded until they stop"
        )
        grows = False
        await until(lambda: served()["pair"] == "2")
        watching.cancel()

    with_reloader(tmp_path, use)


class Clock:
    """A repository of the folders `one` and `two`, looked at once a second."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._time = 0.0
        self._folder = folder
        monkeypatch.setattr(settling, "time", SimpleNamespace(monotonic=lambda: self._time))
        for name in ("one", "two"):
            self.write(name)
        self.settling = Settling(folder)
        self.settling.start(read_stamps(folder))
        assert self.look() is None

    def write(self, name: str) -> None:
        (self._folder / name).mkdir(exist_ok=True)
        with (self._folder / name / "file").open("a") as file:
            file.write("x")

    def look(self, *names: str) -> set[str] | None:
        """Look after files of these folders have changed."""
        for name in names:
            self.write(name)
        self._time += 1
        held = self.settling.note(read_stamps(self._folder))
        if held is None:
            return None
        self.settling.take()
        return set(held)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(tmp_path, monkeypatch)


def test_folders_that_are_written_one_after_another_count_together(clock: Clock) -> None:
    assert [clock.look("one"), clock.look("two"), clock.look("three")] == [None] * 3
    assert clock.look() == set()
    assert clock.look() is None


def test_a_restless_folder_counts_when_it_is_still_and_when_it_is_gone(clock: Clock, tmp_path: Path) -> None:
    assert {clock.look("one") for _ in range(100)} == {None}
    assert clock.look("one", "two") is None
    assert clock.look("one") == {"one"}
    assert clock.look("one") is None
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    shutil.rmtree(tmp_path / "one")
    assert clock.look() is None
    assert clock.look() == set()


def test_changes_that_are_never_still_are_not_waited_for_in_silence(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        assert clock.look("one") is None
        assert clock.look("two") is None
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: files have changed at every check for 60 s, now {tmp_path}/")
    assert message.endswith("; nothing is reloaded until they stop")
    assert clock.look() == set()


def test_a_repository_that_is_empty_at_the_first_look_is_looked_at_again(tmp_path: Path) -> None:
    made = Settling(tmp_path)
    made.start([(f"{tmp_path}/one", 0, 0, 0)])
    assert [made.note([]), made.note([])] == [None, frozenset()]


def test_why_a_repository_cannot_be_read_counts_like_its_files(clock: Clock) -> None:
    for reason in ("Input/output error", "Permission denied"):
        assert clock.settling.note(reason) is None
        assert clock.settling.note(reason) == set()
        clock.settling.take()
        assert clock.settling.note(reason) is None
