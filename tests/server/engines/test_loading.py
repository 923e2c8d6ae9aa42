import asyncio
import threading
from pathlib import Path

import pytest

from coserve_server.engines.embedded import loaded_ensemble
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.loading import loading_bytes
from coserve_server.engines.embedded.members import LoadedMember
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import create_engine
from coserve_server.ensembles.repository import read_versions
from coserve_server.errors import EngineError
from tests.server.engines.embedded import TWO
from tests.server.onnx_repository import write_repository


def test_what_loading_takes_grows_with_the_files(tmp_path: Path) -> None:
    write_repository(tmp_path)
    (pair,) = read_versions(tmp_path)["pair"]
    files = sum(member.model_path.stat().st_size for member in pair.members if member.model_path)
    assert loading_bytes(pair) == int(3.5 * files) + 2 * 32 * 2**20


def test_a_load_that_hangs_does_not_keep_the_event_loop_from_closing(tmp_path: Path) -> None:
    write_repository(tmp_path)
    answers = threading.Event()

    def load(*_: object) -> None:
        answers.wait(60)
        raise EngineError("the file system answers again")

    async def main() -> None:
        engine = EmbeddedEngine(load, EngineOptions(), TWO, {})  # type: ignore[arg-type]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.replace("pair", read_versions(tmp_path)["pair"]), 0.1)

    late = threading.Timer(10, answers.set)
    late.start()
    try:
        asyncio.run(main())
        assert not answers.is_set()
    finally:
        late.cancel()
        answers.set()


def test_a_load_that_hangs_fails_and_later_loads_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repository(tmp_path)
    pair = read_versions(tmp_path)["pair"]
    engine = create_engine(EngineOptions(), TWO, {})
    load = engine._load_member
    answers = threading.Event()

    def hang(*_: object) -> LoadedMember:
        answers.wait(60)
        raise EngineError("the file system answers again")

    async def main() -> None:
        try:
            monkeypatch.setattr(engine, "_load_member", hang)
            monkeypatch.setattr(loaded_ensemble, "LOAD_S", 0.1)
            with pytest.raises(EngineError, match=r"member \w+ .* is not loaded within 0\.1 s"):
                await engine.replace("pair", pair)
            assert not answers.is_set()
            monkeypatch.setattr(engine, "_load_member", load)
            monkeypatch.setattr(loaded_ensemble, "LOAD_S", 60)
            await engine.replace("pair", pair)
            assert engine.ready_members(engine.ensembles["pair"]) == {one.name for one in pair[0].members}
        finally:
            await engine.close()

    try:
        asyncio.run(asyncio.wait_for(main(), 50))
    finally:
        answers.set()
