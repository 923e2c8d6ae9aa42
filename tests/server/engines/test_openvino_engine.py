"""The engine openvino with real ONNX members, compared with ONNX Runtime; no test depends on durations."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from coserve_server.catalogue.catalogue import Catalogue
from coserve_server.catalogue.reload import Reloader
from coserve_server.engines.base import Images
from coserve_server.engines.embedded import lanes
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.members import STUCK
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import create_engine
from coserve_server.engines.openvino.engine import OpenVinoEngine
from coserve_server.ensembles.repository import read_repository, read_versions
from coserve_server.errors import EngineError, SettingsError
from coserve_server.machine.cores import Cores
from coserve_server.outcomes import Failure, MemberRun
from coserve_server.settings import load_settings
from tests.server.engines.embedded import TWO, infer, with_engine
from tests.server.onnx_repository import BUSY, add_version, write_repository

OPENVINO = EngineOptions("openvino")


async def until_stuck(engine: EmbeddedEngine) -> None:
    """Abandon batches until one has begun and cannot be stopped: a busy machine may be slow to begin one."""
    for _ in range(100):
        hanging, sound = engine.start(engine.ensembles["pair"], images())
        assert (await sound).failure is None
        await asyncio.sleep(0.3)
        hanging.cancel()
        await asyncio.sleep(0.1)
        if len(engine.ready_members(engine.ensembles["pair"])) < 2:
            return
    pytest.fail("no batch was begun")


def images(count: int = 3, size: int = 8) -> Images:
    return np.random.default_rng(9).random((count, 3, size, size), np.float32)


def test_members_give_the_logits_of_onnxruntime_at_every_batch_size(tmp_path: Path) -> None:
    write_repository(tmp_path, depth=3)

    async def use(engine: EmbeddedEngine) -> list[tuple[Images, list[MemberRun]]]:
        batches = [images(3), images(1), images(8), images(3)[::-1], images(2)]
        batches[-1].flags.writeable = False
        return [(batch, await infer(engine, batch)) for batch in batches]

    answers = with_engine(tmp_path, use, OPENVINO)
    for index in range(2):
        session = ort.InferenceSession(tmp_path / f"pair_member{index}/1/model.onnx")
        for batch, runs in answers:
            (expected,) = session.run(None, {"images": np.ascontiguousarray(batch)})
            np.testing.assert_allclose(runs[index].logits, expected, atol=1e-4)
            assert runs[index].start_ns < runs[index].end_ns


@pytest.mark.parametrize(("threads", "members"), [(None, 2), (2, 2), (1, 1)])
def test_any_number_of_threads_gives_the_same(tmp_path: Path, threads: int | None, members: int) -> None:
    write_repository(tmp_path, members=members, channels=32, size=16)
    batch = images(2, 16)
    runs = with_engine(tmp_path, lambda engine: infer(engine, batch), EngineOptions("openvino", threads))
    for index, run in enumerate(runs):
        session = ort.InferenceSession(tmp_path / f"pair_member{index}/1/model.onnx")
        np.testing.assert_allclose(run.logits, session.run(None, {"images": batch})[0], atol=1e-4)


def test_members_are_pinned_to_cores_of_their_own(tmp_path: Path) -> None:
    write_repository(tmp_path)
    allowed = sorted(os.sched_getaffinity(0))
    ids = (allowed[0], allowed[-1])

    async def use(engine: EmbeddedEngine) -> tuple[list[MemberRun], list[set[int]]]:
        runs = await infer(engine, images())
        (loaded,) = engine._loaded.values()
        for lane in loaded.lanes:
            assert lane.pin is not None
            lane.pin.start()  # on its own core, if another process had it meanwhile
        return runs, [lane.submit(os.sched_getaffinity, 0).result() for lane in loaded.lanes]

    runs, affinities = with_engine(tmp_path, use, OPENVINO, Cores(2, ids))
    assert [run.device for run in runs] == [f"cpu:{ids[0]}", f"cpu:{ids[1]}"]
    assert affinities == [{ids[0]}, {ids[1]}], "OpenVINO leaves the threads where they are"
    assert sorted(os.sched_getaffinity(0)) == allowed, "the calling thread keeps its cores"


def test_members_that_share_a_pool_of_threads_are_not_pinned(tmp_path: Path) -> None:
    write_repository(tmp_path)
    cores = sorted(os.sched_getaffinity(0))[:2]
    runs = with_engine(tmp_path, lambda engine: infer(engine, images()), OPENVINO, Cores(4, (*cores, *cores)))
    assert [run.device for run in runs] == ["cpu", "cpu"]
    assert all(run.failure is None for run in runs)


def test_a_member_of_one_thread_runs_on_its_lane(tmp_path: Path) -> None:
    write_repository(tmp_path, depth=40, channels=64, size=32)

    async def use(engine: EmbeddedEngine) -> list[float]:
        (loaded,) = engine._loaded.values()
        lane = loaded.lanes[0]
        before = lane.submit(time.thread_time).result()
        run = await engine.start(engine.ensembles["pair"], images(8, 32))[0]
        return [lane.submit(time.thread_time).result() - before, (run.end_ns - run.start_ns) / 1e9]

    busy, took = with_engine(tmp_path, use, OPENVINO, Cores(1, None))
    assert busy > 0.1 * took, "a thread that only waits uses no processor time"


def test_a_batch_that_fails_is_an_error_and_the_next_is_answered(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: EmbeddedEngine) -> tuple[list[MemberRun], list[MemberRun]]:
        return await infer(engine, images(size=9)), await infer(engine, images())

    failed, answered = with_engine(tmp_path, use, OPENVINO)
    assert all(run.logits is None and run.failure for run in failed)
    assert all(run.failure is None for run in answered)


def test_a_call_that_is_stopped_before_it_begins_does_not_run(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: EmbeddedEngine) -> MemberRun:
        (loaded,) = engine._loaded.values()
        call = loaded.members[0].call()
        call.stop()
        return loaded.members[0].run(images(), call)

    assert with_engine(tmp_path, use, OPENVINO).failure == Failure("failed", "stopped before it started")


def test_a_cancelled_member_is_left_out_until_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "PATIENCE_S", 0.05)
    write_repository(tmp_path, faults={0: BUSY})

    async def use(engine: EmbeddedEngine) -> None:
        ensemble = engine.ensembles["pair"]
        await until_stuck(engine)
        first, second = await infer(engine, np.zeros_like(images()))
        assert (first.failure, second.failure) == (STUCK, None)
        while len(engine.ready_members(ensemble)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert all(run.failure is None for run in await infer(engine, np.zeros_like(images())))

    with_engine(tmp_path, use, OPENVINO)


@pytest.mark.parametrize("content", [b"no network", None])
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    write_repository(tmp_path)
    file = tmp_path / "pair_member1/1/model.onnx"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(EngineError) as caught:
        create_engine(OPENVINO, TWO, read_repository(tmp_path))
    assert str(caught.value).startswith(f"ensemble pair: member pair_member1 ({file}) cannot be loaded: ")
    assert "\n" not in str(caught.value)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pair-")]


def test_a_new_version_is_taken_over_while_it_serves(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: EmbeddedEngine) -> tuple[list[MemberRun], list[MemberRun]]:
        catalogue = Catalogue(engine, load_settings(repository=tmp_path))
        reloader = Reloader(tmp_path, engine, catalogue)
        before = await infer(engine, images())
        add_version(tmp_path, "pair", 2)
        await reloader.refresh()
        assert engine.ensembles["pair"].version == "2"
        after = await infer(engine, images())
        add_version(tmp_path, "pair", 3, cut_off=1)
        await reloader.refresh()
        assert "cannot be loaded" in catalogue.rejected["pair"]
        assert engine.ensembles["pair"].version == "2"
        return before, after

    for old, new in zip(*with_engine(tmp_path, use, OPENVINO), strict=True):
        assert old.logits is not None
        assert new.logits is not None
        assert not np.allclose(old.logits, new.logits)


def test_compiled_networks_are_kept_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "models")
    cache = tmp_path / "cache"

    def answers() -> list[MemberRun]:
        return with_engine(
            folder, lambda engine: infer(engine, images()), EngineOptions("openvino", cache=cache)
        )

    first = answers()
    kept = sorted(cache.glob("*.blob"))
    whole = [file.read_bytes() for file in kept]
    assert len(kept) == 2
    kept[0].write_bytes(whole[0][:100])
    kept[1].write_bytes(b"")
    for run, again in zip(first, answers(), strict=True):
        np.testing.assert_array_equal(run.logits, again.logits)
    assert [len(file.read_bytes()) for file in sorted(cache.glob("*.blob"))] == list(map(len, whole))
    # Another network at the same path does not get the cached one.
    file, other = (folder / f"pair_member{index}/1/model.onnx" for index in range(2))
    status = file.stat()
    file.write_bytes(other.read_bytes())
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    np.testing.assert_array_equal(answers()[0].logits, first[1].logits)


def test_settings_choose_engine_threads_and_pinning(tmp_path: Path) -> None:
    cores = Cores(2, tuple(sorted(os.sched_getaffinity(0)))[:2])
    how = {"repository": tmp_path, "engine": "openvino", "pin_members": False, "member_threads": 2}
    engine = create_engine(EngineOptions.from_settings(load_settings(**how)), cores)
    assert isinstance(engine, OpenVinoEngine)
    assert (engine._cores, engine._options.threads) == (Cores(2, None), 2)
    limited = create_engine(
        EngineOptions.from_settings(load_settings(repository=tmp_path, max_batch_size=4)), cores
    )
    write_repository(tmp_path)
    asyncio.run(limited.replace("pair", read_versions(tmp_path)["pair"]))
    assert not asyncio.run(limited.replace("pair", read_versions(tmp_path)["pair"])), "nothing has changed"
    assert limited.ensembles["pair"].max_batch_size == 4
    asyncio.run(limited.close())
    default = create_engine(EngineOptions.from_settings(load_settings(repository=tmp_path)), cores)
    assert (default._cores, default._options.threads) == (cores, None)
    for setting, value in (("openvino_cache", tmp_path), ("openvino_precision", "bf16")):
        with pytest.raises(SettingsError, match=f"{setting}: only engine openvino uses it"):
            load_settings(repository=tmp_path, **{setting: value})


def test_a_cache_that_cannot_be_kept_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for cache in (file, file / "below"):
        with pytest.raises(SettingsError, match=r"openvino_cache: .*file.* cannot be written: "):
            create_engine(EngineOptions("openvino", cache=cache), TWO, {})


def test_nothing_is_reported(tmp_path: Path) -> None:
    code = (
        "import sys; import coserve_server.engines.openvino; "
        "sys.exit(any(name.startswith('openvino_telemetry.') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"HOME": str(tmp_path)})
    assert list(tmp_path.iterdir()) == [], "it writes no files for telemetry either"
