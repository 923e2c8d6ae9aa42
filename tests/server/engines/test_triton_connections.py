"""How the engine `triton` reaches servers: host names, shared memory, TLS."""

import asyncio
import shutil
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme

from coserve_server.engines.triton import shared_memory
from coserve_server.engines.triton.engine import TritonEngine
from coserve_server.engines.triton.shared_memory import SharedMemory
from coserve_server.errors import SettingsError
from coserve_server.settings import load_settings
from tests.server.engines.engine_on_fake import IMAGES, infer, until, with_engine
from tests.server.engines.fake_triton import FakeTriton
from tests.server.onnx_repository import write_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "models")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 cannot tell")
def test_a_request_that_is_left_goes_to_no_other_server(repository: Path) -> None:
    """This holds even if its server is lost at the same moment."""

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        for fake in fakes:
            fake.hanging.update({"pair_member0", "pair_member1"})
        runs = engine.start(engine.ensembles["pair"], IMAGES)
        await until(lambda: sum(len(fake.requests) for fake in fakes) == 2)
        for endpoint in engine._endpoints:
            endpoint.drop_calls()
        for run in runs:
            run.cancel()
        await asyncio.sleep(0.2)
        assert sum(len(fake.requests) for fake in fakes) == 2

    with_engine(repository, use, servers=2)


def test_images_go_through_shared_memory(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        runs = engine.start(engine.ensembles["pair"], IMAGES)
        other = engine.start(engine.ensembles["pair"], IMAGES[:1])
        await asyncio.gather(*runs, *other)
        (region,) = fakes[0].regions
        places = []
        for request in fakes[0].requests:
            assert len(request.raw_input_contents) == 0
            parameters = request.inputs[0].parameters
            assert parameters["shared_memory_region"].string_param == region
            assert parameters["shared_memory_byte_size"].int64_param == request.inputs[0].shape[0] * 768
            places.append(parameters["shared_memory_offset"].int64_param)
        assert places == [0, 0, 1536, 1536]
        large = np.zeros((1400, 3, 8, 8), np.float32)
        assert all(run.logits is not None for run in await infer(engine, large))
        assert len(fakes[0].requests[-1].raw_input_contents) == 1, "it does not fit"
        assert engine._memory is not None
        assert engine._memory._slots == []

    with_engine(repository, use, triton_shared_memory_mib=1)


def test_unavailable_shared_memory_prevents_the_start() -> None:
    before = set(Path("/dev/shm").iterdir())
    free = shutil.disk_usage("/dev/shm").free
    for size in (free + 2**30, 2**45, 2**70):
        with pytest.raises(SettingsError, match=r"triton_shared_memory_mib: cannot allocate \d+ MiB: No"):
            SharedMemory(size)
    assert set(Path("/dev/shm").iterdir()) == before


def test_without_shared_memory_the_setting_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "none")
    with pytest.raises(SettingsError, match="cannot allocate 1 MiB: No such file or directory"):
        SharedMemory(2**20)


def test_the_token_goes_with_every_call_and_only_encrypted(repository: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "root.pem")
    mine = authority.issue_cert("localhost")
    yours = authority.issue_cert("gateway")
    yours.private_key_pem.write_to_path(tmp_path / "key.pem")
    yours.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    credentials = grpc.ssl_server_credentials(
        [(mine.private_key_pem.bytes(), mine.cert_chain_pems[0].bytes())],
        authority.cert_pem.bytes(),
        require_client_auth=True,
    )

    async def run() -> None:
        fake = FakeTriton(repository)
        port = (await fake.start(credentials=credentials)).rpartition(":")[2]
        encrypted = {"triton_tls": True, "triton_root_certificates": tmp_path / "root.pem"}
        identified = {
            "triton_client_key": tmp_path / "key.pem",
            "triton_client_certificate": tmp_path / "cert.pem",
        }
        for settings, works in (({}, False), (encrypted, False), (encrypted | identified, True)):
            secret = {"triton_token": "secret"} if settings else {}
            engine = await TritonEngine.connect(
                load_settings(engine="triton", triton_url=f"localhost:{port}", **settings, **secret)
            )
            if works:
                await until(lambda one=engine: bool(one.ensembles))
            assert bool(engine.ensembles) is works
            if works:
                assert all(run.failure is None for run in await infer(engine))
            await engine.close()
        await fake.stop()
        assert fake.tokens == {"Bearer secret"}

    asyncio.run(run())


@pytest.mark.parametrize(("certified", "trusted"), [("localhost", True), ("elsewhere.test", False)])
def test_the_certificate_is_for_the_name_in_the_settings(
    certified: str, trusted: bool, repository: Path, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "root.pem")
    mine = authority.issue_cert(certified)
    key = [(mine.private_key_pem.bytes(), mine.cert_chain_pems[0].bytes())]

    async def run() -> None:
        fake = FakeTriton(repository)
        port = (await fake.start(credentials=grpc.ssl_server_credentials(key))).rpartition(":")[2]
        engine = await TritonEngine.connect(
            load_settings(
                engine="triton",
                triton_url=f"localhost:{port}",
                triton_tls=True,
                triton_root_certificates=tmp_path / "root.pem",
            )
        )
        try:
            assert bool(engine.ensembles) is trusted
        finally:
            await engine.close()
            await fake.stop()

    asyncio.run(run())
