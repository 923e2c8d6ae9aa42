"""The engine `triton` learns about models from servers that come, change and go."""

import asyncio
import json
from pathlib import Path

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from coserve_server.engines.triton.engine import TritonEngine
from coserve_server.settings import load_settings
from tests.server.engines.engine_on_fake import IMAGES, infer, ready, until, with_engine
from tests.server.engines.fake_triton import FakeTriton
from tests.server.onnx_repository import write_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "models")


def test_triton_alone_describes_the_models_it_has_loaded(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        ensemble = engine.ensembles["pair"]
        assert ensemble.labels == ("cat", "dog", "frog", "ship")
        assert [member.name for member in ensemble.members] == ["pair_member0", "pair_member1"]
        assert engine.ready_members(ensemble) == {"pair_member0", "pair_member1"}
        assert (engine.faults(), engine.why_missing("cow")) == ([], None)

    with_engine(repository, use)


def test_nothing_is_described_again_while_nothing_changes(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        before = engine.ensembles["pair"]
        described = fakes[0].described
        fakes[0].reasons["one more"] = "x"
        await asyncio.sleep(0.2)
        assert fakes[0].described == described
        fakes[0].loaded.discard("pair_mean")
        await until(lambda: fakes[0].described > described)
        await asyncio.sleep(0.1)
        assert engine.ensembles["pair"] is before, "requests in progress compare by identity"

    with_engine(repository, use)


def test_a_model_reloaded_under_its_version_is_described_again(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        labels = json.dumps(["ship", "frog", "dog", "cat"])
        fakes[0].configs["pair"].parameters["labels"].string_value = labels
        await until(lambda: engine.ensembles["pair"].labels[0] == "ship")

    with_engine(repository, use)


def test_a_server_that_describes_an_ensemble_differently_is_left_out(repository: Path) -> None:
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
        assert all(run.failure is None for run in await infer(engine))
        (old, _) = await asyncio.gather(*engine.start(before, IMAGES))
        assert old.failure is not None, (
            "a request preprocessed for the old ensemble gets no logits of the new one"
        )

    with_engine(repository, use, servers=2)


def test_an_unloaded_member_leaves_the_others_in_service(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].loaded -= {"pair", "pair_member1"}
        fakes[0].reasons |= {"pair": "unloaded", "pair_member1": "unloaded"}
        await until(lambda: ready(engine) == 1)
        sound, gone = await infer(engine)
        assert sound.failure is None
        assert "unknown model: 'pair_member1'" in gone.failure.reason
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
        assert "has not loaded pair" in str(engine.why_missing("pair"))
        assert engine.faults() == []

    with_engine(repository, use)


def test_a_model_that_cannot_be_loaded_is_named(repository: Path) -> None:
    write_repository(repository, "other")

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].loaded -= {"pair", "pair_member0", "pair_member1"}
        fakes[0].reasons["pair_member1"] = "Internal: no memory\n\nAt:\n  model.py"
        await until(lambda: "pair" not in engine.ensembles)
        (fault,) = engine.load_errors.values()
        assert fault.endswith("has not loaded pair_member1: Internal: no memory")
        assert engine.faults() == [], "it does not keep the other from being served"
        assert fault in str(engine.why_missing("pair"))

    with_engine(repository, use)


def test_every_server_that_cannot_load_a_model_is_named(repository: Path) -> None:
    write_repository(repository, "other")

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        for fake, reason in zip(fakes, ("no memory", "no backend"), strict=True):
            fake.loaded -= {"pair", "pair_member0", "pair_member1"}
            fake.reasons["pair_member1"] = reason
        await until(lambda: "pair" not in engine.ensembles)
        (fault,) = engine.load_errors.values()
        one, other = (endpoint.address for endpoint in engine._endpoints)
        assert fault == (
            f"{one} has not loaded pair_member1: no memory; {other} has not loaded pair_member1: no backend"
        )
        absence = str(engine.why_missing("pair"))
        assert absence.startswith(f"{one} has not loaded pair; {other} has not loaded pair; ")
        assert absence.endswith(fault)

    with_engine(repository, use, servers=2)


def test_an_ensemble_of_another_kind_is_not_served(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_repository(repository, "other")

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        for key in ("preprocessing", "labels"):
            del fakes[0].configs["other"].parameters[key]
        fakes[0].loaded.discard("pair_mean")
        await until(lambda: list(engine.ensembles) == ["pair"])
        assert "other: parameter preprocessing is missing" in caplog.text
        assert (engine.load_errors, engine.why_missing("other")) == ({}, None)

    with_engine(repository, use)


@pytest.mark.parametrize("broken", ["pair", "pair_member1"])
def test_a_broken_ensemble_is_named_and_its_repair_noticed_under_the_same_version(
    repository: Path, broken: str
) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        (address,) = (endpoint.address for endpoint in engine._endpoints)
        sound = dict(fakes[0].configs)
        fakes[0].configs[broken] = ModelConfig()
        fakes[0].configs[broken].CopyFrom(sound[broken])
        if broken == "pair":
            fakes[0].configs[broken].parameters["labels"].string_value = "none"
            reason = f"{address}: pair: parameter labels is not JSON"
        else:
            fakes[0].configs[broken].max_batch_size = 2
            reason = f"{address}: pair: step 'pair_member1': max_batch_size 2 is less than the ensemble's 8"
        # Members are described again only with their ensemble.
        fakes[0].loaded.discard("pair_mean")
        await until(lambda: not engine.ensembles)
        assert engine.load_errors["pair"].startswith(reason)
        (fault,) = engine.faults()
        assert fault.startswith(f"no Triton server has an ensemble ({address}: answers); {reason}")
        assert engine.why_missing("pair") == fault
        fakes[0].configs[broken] = sound[broken]
        await until(lambda: ready(engine) == 2)
        assert (engine.load_errors, engine.faults()) == ({}, [])

    with_engine(repository, use)


def test_a_broken_ensemble_keeps_no_other_from_being_served(repository: Path) -> None:
    write_repository(repository, "other")

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].configs["other"].parameters["labels"].string_value = "none"
        await until(lambda: list(engine.ensembles) == ["pair"])
        assert engine.faults() == []
        assert "other: parameter labels is not JSON" in str(engine.why_missing("other"))
        assert engine.why_missing("cow") is None

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
            assert engine.why_missing(None) == engine.why_missing("pair") == fault
            await fake.start(url)
            await until(lambda: ready(engine) == 2)
            assert engine.faults() == []
        finally:
            await engine.close()
            await fake.stop()

    asyncio.run(run())
