"""What the comparison with other servers sends, and how its page divides the results."""

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coserve_bench.http.images import EncodedImage
from coserve_bench.http.loads import ClosedLoop, OpenLoop
from coserve_server.machine.cores import usable_cores

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ROOT / "benchmarks", ROOT / "benchmarks/peers"


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a script as Python runs it, beside the files in its folder."""
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(str(folder))
    file = next(folder / f"{name}.py" for folder in FOLDERS if (folder / f"{name}.py").is_file())
    spec = importlib.util.spec_from_file_location(f"peers_{name}", file)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, loaded)
    spec.loader.exec_module(loaded)
    return loaded


def test_photographs_reach_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    Image.fromarray(pixels).resize((640, 480)).save(tmp_path / "one.jpg", quality=95)
    photographs = module("photographs", monkeypatch)
    old = tmp_path / "out/small/old.jpg"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["photographs.py", str(tmp_path / "one.jpg"), str(tmp_path / "out")])
    photographs.main()
    assert not old.exists()
    for size, most in zip(photographs.SIZES, (1100, 130_000, 4_500_000), strict=True):
        (file,) = (tmp_path / "out" / size.name).iterdir()
        with Image.open(file) as image:
            assert image.size == size.pixels
        assert size.kilobytes * 1000 <= file.stat().st_size <= most


def load(clients: int, rate: float, p99: float, failed: int = 0, **where: Any) -> dict[str, Any]:
    """Return the results of a load, as `compare.py` writes them."""
    latency = {"p50": p99 / 2, "p99": p99}
    errors = {"timeout": failed} if failed else {}
    kind = {"images": "small", "neighbour": False, **where}
    closed = {"loop": "closed", "concurrency": clients}
    return {**kind, **closed, "requests_per_s": rate, "latency_ms": latency, "errors": errors}


def servers(*loads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ["Coserve", "One", "Other"]
    return [{"server": name, "version": "1", "loads": own} for name, own in zip(names, loads, strict=True)]


def test_the_last_row_divides_by_the_best_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    page = module("peers_page", monkeypatch)
    measured = servers(
        [load(1, 120, 6), load(8, 99, 50)],
        [load(1, 100, 9), load(8, 300, 10, failed=1)],
        [load(1, 80, 8), load(8, 90, 100)],
    )
    rows = list(page.comparison(measured, "small", False))
    assert rows[0][1:] == ["1 client", "8 clients"]
    assert rows[2] == ["One 1", "100.0 (4.5 / 9.0)", "300.0 (5.0 / 10.0), 1 failed"]
    assert rows[-1][1:] == ["**1.20**, p99 0.75", "**1.10**, p99 0.50"], "a peer that fails does not count"


def test_quiet_and_beside_a_busy_process_are_tables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    page = module("peers_page", monkeypatch)
    loads = [load(1, 120, 6), load(1, 60, 12, neighbour=True)]
    (measured, *_) = servers(loads, [], [])
    assert [row[1] for row in page.comparison([measured], "small", True)] == ["1 client", "60.0 (6.0 / 12.0)"]
    assert list(page.comparison([measured], "large", True)) == []
    kind = {"name": "large", "mean_bytes": 4_200_000}
    assert page.heading(kind, True) == "**Images of 4.2 MB**, beside a busy process"


def test_large_images_are_sent_by_few_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = module("measured", monkeypatch)
    kinds = [
        measured.Kind(name, [EncodedImage("one.jpg", "image/jpeg", bytes(size))])
        for name, size in (("s", 9), ("l", 2_000_000))
    ]
    loads = [ClosedLoop(8), ClosedLoop(32), OpenLoop(50)]
    cases = measured.Measured(None, kinds, loads, True).cases
    assert [str(case) for case in cases] == [
        "closed, 8, s",
        "closed, 32, s",
        "open, 50/s, s",
        "closed, 8, s beside a busy process",
        "closed, 32, s beside a busy process",
        "open, 50/s, s beside a busy process",
        "closed, 8, l",
        "closed, 8, l beside a busy process",
    ]


def test_the_page_names_the_limits_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    page = module("peers_page", monkeypatch)
    assert page.limits({"cpus": 1.5, "cpu_shares": 512}) == ", with --cpus 1.5, with --cpu-shares 512"
    assert page.limits({"cpus": None}) == ""


def test_a_container_without_limits_starts_commands_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    container = module("container", monkeypatch)
    with container.Container().prefix() as prefix:
        assert prefix == []
    assert container.Container().suffix == ""
    assert container.Container(1.5, 512).suffix == "_cpus_1.5_shares_512"
    assert container.Container(0.5).cores == 1
    assert container.Container(999).cores == usable_cores().count


class Unwritable:
    """A number that the kernel refuses."""

    def __str__(self) -> str:
        raise OSError(22, "Invalid argument")


def test_a_server_is_started_in_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container = module("container", monkeypatch)
    monkeypatch.setattr(container, "CONTROLLER", tmp_path)
    # The kernel's folders count as empty for rmdir(2).
    monkeypatch.setattr(Path, "rmdir", lambda group: shutil.rmtree(group))
    with container.Container(1.5, 512).prefix() as prefix:
        (group,) = tmp_path.iterdir()
        assert (group / "cpu.cfs_quota_us").read_text() == "150000"
        assert (group / "cpu.cfs_period_us").read_text() == "100000"
        assert (group / "cpu.shares").read_text() == "512"
        left_behind = subprocess.Popen([*prefix, "sleep", "600"])
        while not (group / "cgroup.procs").is_file():
            assert left_behind.poll() is None
            time.sleep(0.01)
        printed = subprocess.check_output([*prefix, "echo", "a b"], text=True)
        assert printed == "a b\n"
        (group / "cgroup.procs").write_text(f"{left_behind.pid}\n")
    assert left_behind.wait(10) == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


def test_a_refused_limit_leaves_no_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container = module("container", monkeypatch)
    monkeypatch.setattr(container, "CONTROLLER", tmp_path)
    monkeypatch.setattr(container, "PERIOD_US", Unwritable())
    monkeypatch.setattr(Path, "rmdir", lambda group: shutil.rmtree(group))
    with pytest.raises(container.ContainerError, match="Invalid argument"), container.Container(1).prefix():
        pass
    assert not list(tmp_path.iterdir())


def test_without_control_groups_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container = module("container", monkeypatch)
    monkeypatch.setattr(container, "CONTROLLER", tmp_path / "missing")
    with pytest.raises(container.ContainerError, match="cgroups v1"), container.Container(1).prefix():
        pass
