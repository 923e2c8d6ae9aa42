"""Reloading changed files of a model repository, without a server."""

import asyncio
import gc
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest

from coserve_server.api.exposition import create_registry
from coserve_server.catalogue.reload import Reloader
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.files import read_stamps
from coserve_server.ensembles.repository import check_unchanged, read_versions
from coserve_server.errors import RepositoryError, UnknownModelError
from coserve_server.pipeline.classifier import Classifier
from coserve_server.settings import load_settings
from tests.server.catalogue.reloading import lanes, run, with_reloader
from tests.server.onnx_repository import add_version, read_config, write_config, write_repository


def test_what_is_held_runs_on_until_it_is_let_go(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        held = engine.ensembles["pair"]
        before = await run(engine, held)
        add_version(tmp_path, "pair", 2)
        await reloader.refresh()
        new = engine.ensembles["pair"]
        assert (held.version, new.version) == ("1", "2")
        for one, again, other in zip(before, await run(engine, held), await run(engine, new), strict=True):
            assert one.logits is not None
            np.testing.assert_array_equal(one.logits, again.logits)
            assert not np.allclose(one.logits, other.logits)
        member = held.alone(held.members[0])
        del held
        assert engine.ready_members(member) == {"pair_member0"}, "a member alone holds its ensemble"
        assert len(engine._loaded) == 2
        del member
        gc.collect()
        assert len(engine._loaded) == 1
        assert engine.ready_members(new) == {"pair_member0", "pair_member1"}

    with_reloader(tmp_path, use)
    assert lanes() == set()


def test_an_ensemble_of_one_class_does_not_replace_one_that_is_served(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        config = read_config(tmp_path / "pair")
        config.parameters["labels"].string_value = '["defect"]'
        config.output[0].dims[0] = 1
        write_config(tmp_path / "pair", config)
        await reloader.refresh()
        assert "needs at least two classes, not 1" in reloader.catalogue.rejected["pair"]
        assert len(engine.ensembles["pair"].labels) == 4

    with_reloader(tmp_path, use)


def test_threads_of_an_unused_ensemble_end(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        count = len(threading.enumerate())
        for version in range(2, 8):
            add_version(tmp_path, "pair", version)
            await reloader.load("pair")
        for _ in range(6000):
            if len([one for one in threading.enumerate() if one.name.startswith("pair-")]) == 2:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{count} threads became {threading.enumerate()}")

    with_reloader(tmp_path, use)


def test_nothing_is_loaded_again_that_did_not_change(tmp_path: Path) -> None:
    write_repository(tmp_path)
    write_repository(tmp_path, "single", members=1)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        before = dict(engine.ensembles)
        add_version(tmp_path, "single", 2)
        # This engine ignores instance groups.
        config = read_config(tmp_path / "pair_member0")
        config.instance_group.add(count=2)
        write_config(tmp_path / "pair_member0", config)
        await reloader.refresh()
        assert engine.ensembles["pair"] is before["pair"]
        assert engine.ensembles["single"] is not before["single"]

    with_reloader(tmp_path, use)


def test_a_file_put_in_another_s_place_is_noticed_by_its_stamp(tmp_path: Path) -> None:
    write_repository(tmp_path)
    (ensemble,) = read_versions(tmp_path)["pair"]
    check_unchanged(ensemble)
    path = ensemble.members[0].model_path
    assert path is not None
    before = read_stamps(tmp_path)
    status = path.stat()
    # Size and modification time stay the same; only the kernel's change time differs.
    shutil.copyfile(path, tmp_path / "copy")
    (tmp_path / "copy").replace(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read_stamps(tmp_path) != before
    with pytest.raises(RepositoryError, match="changed while it was loaded"):
        check_unchanged(ensemble)


def test_the_versions_that_the_policy_serves(tmp_path: Path) -> None:
    write_repository(tmp_path)
    for version in (2, 3):
        add_version(tmp_path, "pair", version, keep=True)

    def served(change: Callable[[object], None]) -> list[str]:
        config = read_config(tmp_path / "pair")
        config.ClearField("version_policy")
        change(config.version_policy)
        write_config(tmp_path / "pair", config)
        versions = read_versions(tmp_path)["pair"]
        for one in versions:
            assert {member.version for member in one.members} == {int(one.version)}
        return [one.version for one in versions]

    assert served(lambda policy: None) == ["3"]
    assert served(lambda policy: policy.all.SetInParent()) == ["1", "2", "3"]  # type: ignore[attr-defined]
    assert served(lambda policy: setattr(policy.latest, "num_versions", 2)) == ["2", "3"]  # type: ignore[attr-defined]
    assert served(lambda policy: policy.specific.versions.extend([1, 3])) == ["1", "3"]  # type: ignore[attr-defined]
    with pytest.raises(RepositoryError, match="serves none of the existing versions"):
        served(lambda policy: policy.specific.versions.append(9))  # type: ignore[attr-defined]


def test_a_version_whose_members_nobody_names_is_not_served_as_another(tmp_path: Path) -> None:
    write_repository(tmp_path)
    add_version(tmp_path, "pair", 2)
    config = read_config(tmp_path / "pair")
    config.version_policy.all.SetInParent()
    write_config(tmp_path / "pair", config)
    with pytest.raises(
        RepositoryError, match=r"steps are for version 2; version 1 needs .*/pair/1/config.pbtxt"
    ):
        read_versions(tmp_path)


def test_what_cannot_be_loaded_changes_nothing(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        before = engine.ensembles["pair"]
        add_version(tmp_path, "pair", 2, cut_off=1)
        with pytest.raises(RepositoryError, match=r"pair_member1 .*/2/model.onnx\) cannot be loaded"):
            await reloader.load("pair")
        assert engine.ensembles["pair"] is before
        assert set(reloader.catalogue.rejected) == {"pair"}
        assert len(engine._loaded) == 1
        with pytest.raises(UnknownModelError, match="has no ensemble 'pair_member0'"):
            await reloader.load("pair_member0")
        add_version(tmp_path, "pair", 3)
        await reloader.refresh()
        assert engine.ensembles["pair"].version == "3"
        assert reloader.catalogue.rejected == {}

    with_reloader(tmp_path, use)


def test_what_is_unloaded_stays_so_until_a_load_succeeds(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        await reloader.unload("pair")
        config = tmp_path / "pair/config.pbtxt"
        sound = config.read_text()
        config.write_text("broken {")
        with pytest.raises(RepositoryError, match='no field named "broken"'):
            await reloader.load("pair")
        config.write_text(sound)
        await reloader.refresh()
        assert (dict(engine.ensembles), reloader.catalogue.unloaded) == ({}, ["pair"])
        assert reloader.catalogue.rejected == {}, "a reason would outlive the repair"
        await reloader.load("pair")
        assert (list(engine.ensembles), reloader.catalogue.unloaded) == (["pair"], [])

    with_reloader(tmp_path, use)


def test_what_the_system_refuses_is_that_ensemble_s_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pair", "single"):
        write_repository(tmp_path, name)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        def new_lanes(ensemble: Ensemble) -> list[Lane]:
            if ensemble.name == "pair":
                raise RuntimeError("can't start new thread")
            return [Lane(ensemble.name)]

        monkeypatch.setattr(engine, "_new_lanes", new_lanes)
        for name in ("pair", "single"):
            add_version(tmp_path, name, 2)
        await reloader.refresh()
        assert {name: one.version for name, one in engine.ensembles.items()} == {"pair": "1", "single": "2"}
        refused = "ensemble pair cannot be loaded: can't start new thread"
        assert reloader.catalogue.rejected == {"pair": refused}

    with_reloader(tmp_path, use)


def test_a_bug_in_one_reload_is_that_ensemble_s_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("pair", "single"):
        write_repository(tmp_path, name)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        replace = engine.replace

        async def fail(name: str, ensembles: Sequence[Ensemble]) -> bool:
            if name == "pair":
                raise KeyError("a bug")
            return await replace(name, ensembles)

        monkeypatch.setattr(engine, "replace", fail)
        for name in ("pair", "single"):
            add_version(tmp_path, name, 2)
        await reloader.refresh()
        assert {name: one.version for name, one in engine.ensembles.items()} == {"pair": "1", "single": "2"}
        assert reloader.catalogue.rejected == {"pair": "'a bug'"}
        assert any(record.exc_info for record in caplog.records), "a bug has a traceback"

    with_reloader(tmp_path, use)


def test_outcomes_are_counted(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        await reloader.refresh()
        add_version(tmp_path, "pair", 2, cut_off=1)
        await reloader.refresh()
        await reloader.unload("pair")
        core = Classifier(engine, load_settings(repository=tmp_path), cores=2)
        text = generate_latest(create_registry(core, core.metrics, reloader)).decode()
        for outcome in ("served", "failed", "removed"):
            assert f'coserve_model_reloads_total{{model="pair",outcome="{outcome}"}} 1.0' in text

    with_reloader(tmp_path, use)


def test_the_watch_waits_until_files_come_to_rest(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        looks = 0

        def look() -> str:
            nonlocal looks
            looks += 1
            # Differs between the first polls, as while a file grows.
            return str(min(looks, 5))

        refreshed = asyncio.Event()

        async def refresh(_: object) -> None:
            refreshed.set()

        reloader._look = look  # type: ignore[method-assign]
        reloader.refresh = refresh  # type: ignore[method-assign,assignment]
        watching = asyncio.create_task(reloader.watch(0.05))
        await asyncio.wait_for(refreshed.wait(), 60)
        watching.cancel()
        assert looks == 6

    with_reloader(tmp_path, use)
