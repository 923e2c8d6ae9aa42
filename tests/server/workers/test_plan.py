from pathlib import Path

import pytest

from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.errors import SettingsError
from coserve_server.machine.cores import Cores
from coserve_server.machine.plan import Slice
from coserve_server.settings import Settings, load_settings
from coserve_server.workers import plan
from coserve_server.workers.plan import divide, plan_slices
from tests.server.onnx_repository import write_repository

PART = Slice(Cores(1, None), None)


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "usable_cores", lambda: Cores(8, None))


def settings(**given: object) -> Settings:
    return load_settings(repository="unused", **given)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_there_are_as_many_as_the_settings_say(workers: int) -> None:
    slices = plan_slices(settings(workers=workers))
    assert [one.cores.count for one in slices] == {1: [8], 2: [4, 4], 3: [2, 3, 3]}[workers]


def test_more_than_cores_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"^settings: workers: 9 workers need 9 cores"):
        plan_slices(settings(workers=9))


@pytest.mark.parametrize("limit", ["max_requests", "max_connections"])
def test_no_worker_is_left_without_requests(limit: str) -> None:
    with pytest.raises(SettingsError, match=f"workers: 3 workers cannot share {limit}, which is 2"):
        plan_slices(settings(workers=3, **{limit: 2}))


def test_by_default_a_gateway_of_triton_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "usable_cores", lambda: Cores(64, None))
    assert len(plan_slices(load_settings(engine="triton", triton_url="localhost:1"))) == 1


def test_by_default_two_cores_are_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan, "usable_cores", lambda: Cores(2, (0, 1)))
    assert len(plan_slices(load_settings(repository=write_repository(tmp_path)))) == 1


@pytest.mark.parametrize("name", ["max_requests", "max_connections", "triton_shared_memory_mib"])
def test_limits_are_divided_without_a_remainder(name: str) -> None:
    whole = settings(**{name: 64})
    parts = [getattr(divide(whole, PART, index, 3), name) for index in range(3)]
    assert parts == [22, 21, 21]


def test_shared_memory_stays_off_and_is_never_divided_away() -> None:
    assert divide(settings(), PART, 1, 2).triton_shared_memory_mib == 0
    assert divide(settings(triton_shared_memory_mib=1), PART, 1, 2).triton_shared_memory_mib == 1


def test_a_worker_has_its_own_gpus_and_its_part_of_memory() -> None:
    own = divide(settings(gpus="0,1"), Slice(Cores(1, None), None, (1,)), 1, 2)
    assert own.gpus == (1,)
    assert EngineOptions.from_settings(own).processes == 2


MIB = 2**20


def memory(monkeypatch: pytest.MonkeyPatch, mib: int) -> None:
    """Give the process a machine of 64 cores, and so much memory."""
    monkeypatch.setattr(plan, "usable_cores", lambda: Cores(64, None))
    monkeypatch.setattr(plan, "available_bytes", lambda: mib * MIB)


# Each of these networks counts as 32 MiB and its file's size; one is loaded again beside the others.
@pytest.mark.parametrize(("mib", "count"), [(33 + 16 * 290, 16), (33 + 5 * 290, 5), (33, 1), (0, 1)])
def test_by_default_there_are_no_more_than_memory_has_room_for(
    mib: int, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory(monkeypatch, mib)
    assert len(plan_slices(load_settings(repository=write_repository(tmp_path, members=1)))) == count
    assert [f"workers: {count}, although there are cores for 16" in text for text in caplog.messages] == [
        True
    ] * (count < 16)


def test_memory_of_unknown_size_is_no_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory(monkeypatch, 0)
    monkeypatch.setattr(plan, "available_bytes", lambda: float("inf"))
    assert len(plan_slices(load_settings(repository=write_repository(tmp_path, members=1)))) == 16


def test_a_repository_that_cannot_be_read_has_one_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory(monkeypatch, 2**20)
    assert len(plan_slices(load_settings(repository=tmp_path))) == 1
    assert caplog.messages == []


@pytest.mark.parametrize(("mib", "warned"), [(3 * 290, False), (3 * 287, True)])
def test_more_than_memory_has_room_for_are_made_with_a_warning(
    mib: int, warned: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory(monkeypatch, mib)
    repository = write_repository(tmp_path, members=1)
    assert len(plan_slices(load_settings(repository=repository, workers=3))) == 3
    assert ["3 workers need about" in text for text in caplog.messages] == [True] * warned
