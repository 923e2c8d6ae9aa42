"""The engine `triton` against a gRPC server that misbehaves; tests/integration has Triton itself."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme

from coserve_server.engines.base import Batch, MemberRun
from coserve_server.engines.triton import endpoint as endpoints
from coserve_server.engines.triton.engine import TritonEngine
from coserve_server.fan_out import fan_out
from coserve_server.settings import load_settings
from tests.server.fake_triton import FakeTriton, logits
from tests.server.onnx_repository import write_repository

Use = Callable[[TritonEngine, list[FakeTriton]], Awaitable[None]]
IMAGES: Batch = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "models")


def with_engine(repository: Path, use: Use, servers: int = 1, **settings: Any) -> None:
    """Run `use`; then nothing of the engine may be left."""

    async def run() -> None:
        fakes = [FakeTriton(repository) for _ in range(servers)]
        urls = [await fake.start() for fake in fakes]
        engine = await TritonEngine.connect(
            load_settings(engine="triton", triton_url=",".join(urls), triton_refresh_ms=20, **settings)
        )
        try:
            await asyncio.wait_for(use(engine, fakes), 60)
            await until(lambda: engine_tasks() == {"TritonEngine._watch"} | (engine_tasks() & LOOKING))
        finally:
            await engine.close()
            for fake in fakes:
                await fake.stop()
        await until(lambda: not engine_tasks())

    asyncio.run(run())


LOOKING = {"UnaryUnaryCall._invoke"}


def engine_tasks() -> set[str]:
    """What runs in the loop on behalf of the engine; the fake servers run there too."""
    names = {str(task.get_coro().__qualname__) for task in asyncio.all_tasks()}
    return {name for name in names if name.startswith(("TritonEngine", "Endpoint", "UnaryUnaryCall"))}


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come to that")


async def infer(engine: TritonEngine, batch: Batch = IMAGES) -> list[MemberRun]:
    return list(await asyncio.gather(*await engine.start(engine.ensembles["pair"], batch, math.inf)))


def ready(engine: TritonEngine) -> int:
    ensemble = engine.ensembles.get("pair")
    return len(engine.ready_members(ensemble)) if ensemble else 0


def test_what_triton_has_loaded_is_described_by_it_alone(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        ensemble = engine.ensembles["pair"]
        assert ensemble.labels == ("cat", "dog", "frog", "ship")
        assert [member.name for member in ensemble.members] == ["pair_member0", "pair_member1"]
        assert engine.ready_members(ensemble) == {"pair_member0", "pair_member1"}
        assert (engine.faults(), engine.absence("cow")) == ([], None)

    with_engine(repository, use)


def test_nothing_is_described_again_while_nothing_changes(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        before, described = engine.ensembles["pair"], fakes[0].described
        fakes[0].reasons["one more"] = "x"
        await asyncio.sleep(0.2)
        assert fakes[0].described == described
        fakes[0].loaded.discard("pair_mean")
        await until(lambda: fakes[0].described > described)
        await asyncio.sleep(0.1)
        assert engine.ensembles["pair"] is before, "requests in progress compare by identity"

    with_engine(repository, use)


def test_members_get_the_same_bytes_at_once(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        runs = await infer(engine)
        for run in runs:
            np.testing.assert_array_equal(run.logits, np.zeros((2, 4)))
            assert run.device == f"triton {engine._endpoints[0].address}"
            assert 0 < run.start_ns < run.end_ns
        assert [request.model_name for request in fakes[0].requests] == ["pair_member0", "pair_member1"]
        for request in fakes[0].requests:
            assert request.inputs[0].shape == [2, 3, 8, 8]
            assert request.raw_input_contents == [IMAGES.tobytes()]

    with_engine(repository, use)


BAD_ANSWERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "type": (lambda r: logits(r, np.zeros((2, 4)), "FP16"), "gave 'logits' as FP16, not FP32"),
    "bytes": (lambda r: _shaped(logits(r, np.zeros((2, 4))), [2, 5]), "gave 32 bytes for 'logits' [2, 5]"),
    "name": (lambda r: _named(logits(r, np.zeros((2, 4))), "x"), "gave no output 'logits'"),
    "nothing": (lambda r: _named(logits(r, []), "logits", contents=0), "gave no output 'logits'"),
}


def _shaped(response: Any, shape: list[int]) -> Any:
    response.outputs[0].shape[:] = shape
    return response


def _named(response: Any, name: str, contents: int = 1) -> Any:
    response.outputs[0].name = name
    del response.raw_output_contents[contents:]
    return response


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_an_answer_that_is_none_is_the_members_error(repository: Path, case: str) -> None:
    answer, message = BAD_ANSWERS[case]

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].answers["pair_member1"] = answer
        sound, bad = await infer(engine)
        assert sound.error is None
        assert str(bad.error).endswith(message)

    with_engine(repository, use)


def test_a_late_members_call_is_cancelled_at_the_server(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].hanging.add("pair_member1")
        loop = asyncio.get_running_loop()
        answer = await fan_out(engine, engine.ensembles["pair"], IMAGES, 1, loop.time() + 3)
        assert answer.members[1].error == "no answer before the deadline"
        assert answer.members[0].error is None
        await until(lambda: fakes[0].cancelled == ["pair_member1"])

    with_engine(repository, use)


def test_a_cancelled_request_is_cancelled_at_the_server(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].hanging |= {"pair_member0", "pair_member1"}
        loop = asyncio.get_running_loop()
        request = asyncio.ensure_future(
            fan_out(engine, engine.ensembles["pair"], IMAGES, 1, loop.time() + 1000)
        )
        await until(lambda: len(fakes[0].requests) == 2)
        request.cancel()
        await until(lambda: sorted(fakes[0].cancelled) == ["pair_member0", "pair_member1"])

    with_engine(repository, use)


def test_batches_go_to_the_servers_in_turn_and_whole(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        for _ in range(4):
            first, second = await infer(engine)
            assert first.device == second.device
        assert [len(fake.requests) for fake in fakes] == [4, 4]

    with_engine(repository, use, servers=2)


def test_members_of_a_lost_server_run_on_another(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        for fake in fakes:
            fake.hanging.add("pair_member1")
        runs = await engine.start(engine.ensembles["pair"], IMAGES, math.inf)
        await runs[0]
        await until(lambda: sum(len(fake.requests) for fake in fakes) == 2)
        lost = next(fake for fake in fakes if fake.requests)
        other = next(fake for fake in fakes if fake is not lost)
        other.hanging.clear()
        await lost.stop()
        assert (await runs[1]).error is None
        assert [request.model_name for request in other.requests] == ["pair_member1"]
        assert all(run.error is None for run in await infer(engine))
        assert ready(engine) == 2

    with_engine(repository, use, servers=2)


def test_members_of_a_frozen_server_run_on_another(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "LOOK_TIMEOUT_S", 0.3)

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].awake.clear()
        for _ in range(2):
            assert all(run.error is None for run in await infer(engine))
        assert len(fakes[1].requests) == 4
        await until(lambda: engine._endpoints[0].error is not None)
        fakes[0].awake.set()
        await until(lambda: engine._endpoints[0].error is None)
        for _ in range(2):
            assert all(run.error is None for run in await infer(engine))
        assert len(fakes[0].requests) >= 4, "it has its share again"

    with_engine(repository, use, servers=2)


def test_a_sole_frozen_server_has_until_the_deadline(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "LOOK_TIMEOUT_S", 0.1)

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].awake.clear()
        runs = await engine.start(engine.ensembles["pair"], IMAGES, math.inf)
        await until(lambda: ready(engine) == 0)
        later = await engine.start(engine.ensembles["pair"], IMAGES, math.inf)
        fakes[0].awake.set()
        assert all(run.error is None for run in await asyncio.gather(*runs, *later))
        await until(lambda: ready(engine) == 2)

    with_engine(repository, use)


def test_a_server_that_describes_an_ensemble_otherwise_has_no_part_in_it(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        before = engine.ensembles["pair"]
        labels = json.dumps(["ship", "frog", "dog", "cat"])
        fakes[1].configs["pair"].parameters["labels"].string_value = labels
        fakes[1].loaded.discard("pair_mean")
        await until(lambda: engine._endpoints[1].ensembles["pair"] is not before)
        for _ in range(4):
            await infer(engine)
        assert len(fakes[1].requests) == 0
        await fakes[0].stop()
        await until(lambda: engine.ensembles["pair"].labels[0] == "ship")
        assert all(run.error is None for run in await infer(engine))
        (old, _) = await asyncio.gather(*await engine.start(before, IMAGES, math.inf))
        assert old.error is not None, "a request that was preprocessed for the old one gets no new logits"

    with_engine(repository, use, servers=2)


def test_an_unloaded_member_leaves_the_others_in_service(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].loaded -= {"pair", "pair_member1"}
        fakes[0].reasons |= {"pair": "unloaded", "pair_member1": "unloaded"}
        await until(lambda: ready(engine) == 1)
        sound, gone = await infer(engine)
        assert sound.error is None
        assert "unknown model: 'pair_member1'" in str(gone.error)
        assert engine.faults() == []
        fakes[0].loaded |= {"pair", "pair_member1"}
        await until(lambda: ready(engine) == 2)

    with_engine(repository, use)


def test_a_new_version_replaces_the_old_one_as_a_whole(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        old = engine.ensembles["pair"]
        for step in fakes[0].configs["pair"].ensemble_scheduling.step:
            step.model_version = 2
        fakes[0].versions |= {"pair": ["2"], "pair_member0": ["1", "2"], "pair_member1": ["1"]}
        await until(lambda: engine.ensembles["pair"] is not old)
        assert engine.ensembles["pair"].version == "2"
        assert engine.ready_members(engine.ensembles["pair"]) == {"pair_member0"}
        fakes[0].versions["pair_member1"] = ["1", "2"]
        await until(lambda: ready(engine) == 2)
        await infer(engine)
        assert {request.model_version for request in fakes[0].requests} == {"2"}

    with_engine(repository, use)


def test_an_ensemble_without_any_member_is_forgotten(repository: Path) -> None:
    write_repository(repository, "other")

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].loaded -= {"pair", "pair_member0", "pair_member1"}
        fakes[0].reasons |= {"pair": "unloaded"}
        await until(lambda: list(engine.ensembles) == ["other"])
        assert "has not loaded pair" in str(engine.absence("pair"))
        assert engine.faults() == []

    with_engine(repository, use)


def test_a_model_that_cannot_be_loaded_is_named(repository: Path) -> None:
    write_repository(repository, "other")

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].loaded -= {"pair", "pair_member0", "pair_member1"}
        fakes[0].reasons["pair_member1"] = "Internal: no memory\n\nAt:\n  model.py"
        await until(lambda: "pair" not in engine.ensembles)
        (fault,) = engine.faults()
        assert fault.endswith("has not loaded pair_member1: Internal: no memory")
        assert fault in str(engine.absence("pair"))

    with_engine(repository, use)


def test_an_ensemble_of_another_kind_is_not_served(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_repository(repository, "other")

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        del fakes[0].configs["other"].parameters["labels"]
        fakes[0].loaded.discard("pair_mean")
        await until(lambda: list(engine.ensembles) == ["pair"])
        assert "other: parameter labels is missing" in caplog.text

    with_engine(repository, use)


def test_a_server_that_comes_later_is_found(repository: Path) -> None:
    async def run() -> None:
        fake = FakeTriton(repository)
        url = await fake.start()
        await fake.stop()
        engine = await TritonEngine.connect(
            load_settings(engine="triton", triton_url=url, triton_refresh_ms=20)
        )
        try:
            (fault,) = engine.faults()
            assert fault.startswith(f"no Triton server has an ensemble ({url}: ")
            assert engine.absence(None) == engine.absence("pair") == fault
            await fake.start(url)
            await until(lambda: ready(engine) == 2)
            assert engine.faults() == []
        finally:
            await engine.close()
            await fake.stop()

    asyncio.run(run())


def test_a_name_with_several_addresses_shares_the_load(repository: Path) -> None:
    """`localhost` is 127.0.0.1 and ::1; each has a server of its own on the same port."""

    async def run() -> None:
        four, six = FakeTriton(repository), FakeTriton(repository)
        port = (await four.start()).rpartition(":")[2]
        await six.start(f"[::1]:{port}")
        engine = await TritonEngine.connect(
            load_settings(engine="triton", triton_url=f"localhost:{port}", triton_refresh_ms=20)
        )
        try:
            await until(lambda: bool(four.tokens and six.tokens))
            for _ in range(4):
                assert all(run.error is None for run in await infer(engine))
            assert len(four.requests) == len(six.requests) == 4
            await six.stop()
            for _ in range(4):
                assert all(run.error is None for run in await infer(engine))
            assert len(four.requests) == 12
        finally:
            await engine.close()
            await four.stop()

    asyncio.run(run())


def test_images_go_through_shared_memory(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        runs = await engine.start(engine.ensembles["pair"], IMAGES, math.inf)
        other = await engine.start(engine.ensembles["pair"], IMAGES[:1], math.inf)
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
        assert engine._memory._places == []

    with_engine(repository, use, triton_shared_memory_mib=1)


def test_the_token_goes_with_every_call_and_only_encrypted(repository: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "root.pem")
    mine, yours = authority.issue_cert("localhost"), authority.issue_cert("gateway")
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
            assert bool(engine.ensembles) is works
            if works:
                assert all(run.error is None for run in await infer(engine))
            await engine.close()
        await fake.stop()
        assert fake.tokens == {"Bearer secret"}

    asyncio.run(run())
