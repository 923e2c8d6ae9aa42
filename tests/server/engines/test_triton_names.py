"""The engine `triton` follows names whose addresses come and go."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from coserve_server.engines.triton import servers as servers_module
from coserve_server.engines.triton.engine import TritonEngine
from coserve_server.settings import load_settings
from tests.server.engines.engine_on_fake import IMAGES, infer, until
from tests.server.engines.fake_triton import FakeTriton
from tests.server.onnx_repository import write_repository

HOSTS = ("127.0.0.1", "127.0.0.2", "[::1]")


class Names:
    """A name server that knows one name.

    Attributes:
        addresses: those of `triton.test`; with none, the name is unknown.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: set[str] = set()
        self.original = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.look_up)
        monkeypatch.setattr(servers_module, "RESOLVE_S", 0.02)

    def look_up(self, host: str, port: int, **options: Any) -> list[Any]:
        if host != "triton.test":
            return self.original(host, port, **options)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        # Every address twice, as with several kinds of socket.
        found = [one for one in self.addresses for _ in range(2)]
        return [one for address in found for one in self.original(address.strip("[]"), port, **options)]


Use = Callable[[TritonEngine, Names, list[FakeTriton]], Awaitable[None]]


@pytest.fixture
def with_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs an engine on `triton.test`, at first the first of three servers."""
    repository = write_repository(tmp_path / "models")

    def run(use: Use, known: tuple[str, ...] = HOSTS[:1]) -> None:
        async def go() -> None:
            names = Names(monkeypatch)
            names.addresses = set(known)
            fakes = [FakeTriton(repository) for _ in HOSTS]
            port = (await fakes[0].start()).rpartition(":")[2]
            for fake, host in zip(fakes[1:], HOSTS[1:], strict=True):
                await fake.start(f"{host}:{port}")
            settings = load_settings(
                engine="triton", triton_url=f"triton.test:{port}", triton_refresh_ms=20, deadline_ms=500
            )
            engine = await TritonEngine.connect(settings)
            try:
                await asyncio.wait_for(use(engine, names, fakes), 60)
            finally:
                await engine.close()
                for fake in fakes:
                    await fake.stop()

        asyncio.run(go())

    return run


async def count_requests(engine: TritonEngine, fakes: list[FakeTriton], batches: int = 6) -> list[int]:
    """Return how many requests each server got of some batches for two members, all of them answered."""
    before = [len(fake.requests) for fake in fakes]
    for _ in range(batches):
        assert all(run.failure is None for run in await infer(engine))
    return [len(fake.requests) - count for fake, count in zip(fakes, before, strict=True)]


def test_servers_behind_a_name_share_the_load_and_come_and_go(with_names: Callable[..., None]) -> None:
    async def use(engine: TritonEngine, names: Names, fakes: list[FakeTriton]) -> None:
        assert await count_requests(engine, fakes) == [12, 0, 0]
        assert len(engine._servers._watches) == 1, "each address is polled once, however often it is listed"
        names.addresses = set(HOSTS)
        await until(lambda: len(engine._hosts(engine.ensembles["pair"])) == 3)
        assert await count_requests(engine, fakes) == [4, 4, 4]
        (six,) = (host.address for host in engine._endpoints if "::1" in host.address)
        assert six.startswith("[::1]:")
        assert "(triton.test:" in six
        names.addresses = set(HOSTS[1:])
        await until(lambda: len(engine._endpoints) == 2)
        assert await count_requests(engine, fakes) == [0, 6, 6]
        await until(lambda: not engine._servers.leaving)

    with_names(use)


def test_a_name_that_is_unknown_for_a_while_keeps_its_servers(
    with_names: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def use(engine: TritonEngine, names: Names, fakes: list[FakeTriton]) -> None:
        assert engine.faults()[0].endswith(": Name or service not known)")
        await asyncio.sleep(0.1)
        names.addresses = {HOSTS[0]}
        await until(lambda: bool(engine.ensembles))
        names.addresses = set()
        await until(lambda: bool(engine._servers.unknown))
        await asyncio.sleep(0.1)
        assert await count_requests(engine, fakes) == [12, 0, 0]
        assert engine.faults() == []
        assert sum("Name or service not known" in text for text in caplog.messages) == 2

    with_names(use, known=())


def test_requests_that_began_with_a_server_that_has_left_are_answered(
    with_names: Callable[..., None],
) -> None:
    async def use(engine: TritonEngine, names: Names, fakes: list[FakeTriton]) -> None:
        labels = json.dumps(["ship", "frog", "dog", "cat"])
        fakes[1].configs["pair"].parameters["labels"].string_value = labels
        old = engine.ensembles["pair"]
        fakes[0].awake.clear()
        held = engine.start(old, IMAGES)
        await until(lambda: len(fakes[0].requests) == 2)
        names.addresses = {HOSTS[1]}
        await until(lambda: engine.ensembles["pair"] is not old)
        late = engine.start(old, IMAGES)
        await until(lambda: len(fakes[0].requests) == 4)
        fakes[0].awake.set()
        assert all(run.failure is None for run in await asyncio.gather(*held, *late))
        assert len(fakes[1].requests) == 0, "it would preprocess images otherwise"

    with_names(use)


@pytest.mark.parametrize("expected", [["2"], ["2", "2"], ["1", "2", "2"]])
def test_the_description_that_most_servers_give_is_served(
    expected: list[str], with_names: Callable[..., None]
) -> None:
    """A rolling update changes it once, and no request fails; of equally many, the newer one counts."""

    async def use(engine: TritonEngine, names: Names, fakes: list[FakeTriton]) -> None:
        servers = len(expected)
        await until(lambda: len(engine._hosts(engine.ensembles["pair"])) == servers)
        versions = []
        for fake in fakes[:servers]:
            fake.versions |= {model: ["1", "2"] for model in fake.loaded}
            for step in fake.configs["pair"].ensemble_scheduling.step:
                step.model_version = 2
            await until(lambda one=fake: described(engine, fakes.index(one)) == "2")
            assert sum(await count_requests(engine, fakes, 2)) == 4
            versions.append(engine.ensembles["pair"].version)
        assert versions == expected

    with_names(use, known=HOSTS[: len(expected)])


def described(engine: TritonEngine, index: int) -> str:
    host = HOSTS[index]
    (endpoint,) = (one for one in engine._endpoints if one.address.startswith(f"{host}:"))
    return endpoint.ensembles["pair"].version
