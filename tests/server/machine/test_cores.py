import os
from pathlib import Path

import pytest

from coserve_server.engines.embedded.lanes import Lane
from coserve_server.machine.cores import CoreLimits, Cores, core_limits, usable_cores
from coserve_server.machine.memory import available_bytes
from coserve_server.machine.topology import PhysicalCore

IDS = (0, 1, 2, 3, 8, 9, 10, 11)
EIGHT = Cores(8, IDS, tuple(PhysicalCore((number,)) for number in IDS))
SHARED = ("200000 100000", "250000 100000", "50000 100000", "750000 100000")
"""Quotas below eight cores."""
V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "33 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*IDS})


def system(root: Path, mount: str, group: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/mountinfo": mount, "proc/self/cgroup": group, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == EIGHT


@pytest.mark.parametrize(
    ("limit", "count"),
    [
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("50000 100000", 1),
        ("750000 100000", 8),
        ("1600000 100000", 8),
        ("max 100000", 8),
    ],
)
def test_version_2_quota_in_a_container(tmp_path: Path, limit: str, count: int) -> None:
    mount = V2_MOUNT.format(root="/")
    cores = usable_cores(system(tmp_path, mount, "0::/", {"sys/fs/cgroup/cpu.max": limit}))
    assert cores.count == count
    assert (cores.ids is None) == (limit in SHARED), "threads are pinned only where no quota shares the cores"


def test_limits_tell_affinity_quota_and_hyper_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    files = {"sys/fs/cgroup/cpu.max": "250000 100000"}
    for core in range(4):
        for thread in (core, core + 8):
            name = f"sys/devices/system/cpu/cpu{thread}/topology/thread_siblings_list"
            files[name] = f"{core},{core + 8}"
    root = system(tmp_path, V2_MOUNT.format(root="/"), "0::/", files)
    topology = tuple(PhysicalCore((core, core + 8)) for core in range(4))
    assert core_limits(root) == CoreLimits(16, IDS, 2.5, topology)


def test_a_quota_that_the_system_does_not_show_is_unknown(tmp_path: Path) -> None:
    assert core_limits(tmp_path).quota is None


def test_version_2_quota_of_a_parent_counts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/app.slice/web.service/cpu.max": "700000 100000",
        "sys/fs/cgroup/app.slice/cpu.max": "300000 100000",
    }
    group = "0::/app.slice/web.service"
    assert usable_cores(system(tmp_path, V2_MOUNT.format(root="/"), group, files)).count == 3


@pytest.mark.parametrize(("quota", "count"), [("-1", 8), ("400000", 4), ("150000", 2)])
def test_version_1_quota_in_a_container_without_namespace(tmp_path: Path, quota: str, count: int) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}
    mount = V1_MOUNT.format(root="/docker/1f")
    group = "5:cpu,cpuacct:/docker/1f\n3:memory:/docker/1f"
    assert usable_cores(system(tmp_path, mount, group, files)).count == count


def test_version_1_quota_of_a_nested_group(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct/jobs/7"
    files = {f"{folder}/cpu.cfs_quota_us": "500000", f"{folder}/cpu.cfs_period_us": "100000"}
    root = system(tmp_path, V1_MOUNT.format(root="/"), "5:cpu,cpuacct:/jobs/7", files)
    assert usable_cores(root).count == 5


ODD = [
    "",
    "max",
    "max 100000",
    "0 0",
    "100000 0",
    "-5 100000",
    "lots of cores",
    "1e9 1e5",
    "9" * 5000 + " 100000",
    "x" * 2**25,
]


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
def test_an_invalid_quota_is_ignored(tmp_path: Path, content: str) -> None:
    files = {"sys/fs/cgroup/cpu.max": content}
    assert usable_cores(system(tmp_path / "2", V2_MOUNT.format(root="/"), "0::/", files)).count == 8
    folder = "sys/fs/cgroup/cpu,cpuacct"
    files = {f"{folder}/cpu.cfs_quota_us": content, f"{folder}/cpu.cfs_period_us": content}
    assert usable_cores(system(tmp_path / "1", V1_MOUNT.format(root="/"), "5:cpu:/", files)).count == 8


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "loop", "bytes"])
def test_a_file_that_cannot_be_read_counts_as_missing(tmp_path: Path, kind: str) -> None:
    system(tmp_path, V2_MOUNT.format(root="/"), "0::/", {})
    for path in (
        tmp_path / "sys/fs/cgroup/cpu.max",
        tmp_path / "proc/meminfo",
        tmp_path / "sys/fs/cgroup/memory.max",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path)
        elif kind == "bytes":
            path.write_bytes(b"\xff\x00\xfe 100000")
    assert usable_cores(tmp_path) == EIGHT
    assert available_bytes(tmp_path) == float("inf")


@pytest.mark.parametrize("error", [PermissionError(1, "Operation not permitted"), AttributeError("not here")])
def test_without_a_known_affinity_all_cores_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    for count, cores in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert usable_cores(tmp_path) == Cores(cores, None)


def test_a_lane_that_may_not_be_pinned_runs_unpinned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    for _ in range(2):
        lane = Lane("one", (0,))
        assert lane.device == "cpu"
        assert lane.submit(int, "5").result() == 5
        lane.close()
    assert len(caplog.messages) == 1
    assert "not pinned to cores" in caplog.messages[0]


def test_this_machine_has_at_least_one() -> None:
    assert usable_cores().count >= 1
