import platform
import subprocess
import sys
from pathlib import Path

import pytest

from coserve_server.machine.memory import available_bytes
from tests.server.machine.test_cores import V2_MOUNT, system

MIB = 2**20
V1_MOUNT = "34 31 0:30 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
MEMINFO = {"proc/meminfo": "MemTotal:       8000000 kB\nMemAvailable:    1048576 kB\nSwapTotal: 0 kB"}


def v2(folder: str, limit: str, used: int, cache: int = 0) -> dict[str, str]:
    return {
        f"sys/fs/cgroup{folder}/memory.max": limit,
        f"sys/fs/cgroup{folder}/memory.current": str(used),
        f"sys/fs/cgroup{folder}/memory.stat": f"anon 5\nfile 7\nactive_file {cache}\ninactive_file {cache}",
    }


def test_the_machine_says(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == float("inf"), "nothing says"
    assert available_bytes(system(tmp_path, "", "", MEMINFO)) == 1024 * MIB


@pytest.mark.parametrize("odd", ["", "lots", "-1", "1 2 3 kB", "9" * 5000, "²"])
def test_an_invalid_number_is_ignored(tmp_path: Path, odd: str) -> None:
    folder = "sys/fs/cgroup"
    files = {f"{folder}/memory.{name}": odd for name in ("max", "current", "stat")}
    files["proc/meminfo"] = f"MemAvailable: {odd}\nMemAvailable\n\n:"
    assert available_bytes(system(tmp_path, V2_MOUNT.format(root="/"), "0::/", files)) == float("inf")
    files |= {f"{folder}/memory.max": "9", f"{folder}/memory.current": "4"}
    files[f"{folder}/memory.stat"] = f"active_file {odd}\nactive_file\ninactive_file 2"
    assert available_bytes(system(tmp_path, V2_MOUNT.format(root="/"), "0::/", files)) == 7


@pytest.mark.parametrize(
    ("limit", "used", "cache", "left"),
    [
        (str(600 * MIB), 500 * MIB, 20 * MIB, 140 * MIB),
        (str(600 * MIB), 700 * MIB, 0, 0),
        ("max", 700 * MIB, 0, 1024 * MIB),
        (str(9000 * MIB), 10 * MIB, 0, 1024 * MIB),
    ],
)
def test_a_container_s_limit(tmp_path: Path, limit: str, used: int, cache: int, left: int) -> None:
    files = MEMINFO | v2("", limit, used, cache)
    assert available_bytes(system(tmp_path, V2_MOUNT.format(root="/"), "0::/", files)) == left


def test_a_parent_s_limit(tmp_path: Path) -> None:
    files = MEMINFO | v2("/a/b", "max", 1) | v2("/a", str(300 * MIB), 100 * MIB)
    assert available_bytes(system(tmp_path, V2_MOUNT.format(root="/"), "0::/a/b", files)) == 200 * MIB


def test_version_1(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory"
    files = MEMINFO | {
        f"{folder}/memory.limit_in_bytes": str(500 * MIB),
        f"{folder}/memory.usage_in_bytes": str(450 * MIB),
        f"{folder}/memory.stat": f"active_file 2\ntotal_active_file {10 * MIB}\ntotal_inactive_file 0",
    }
    group = "5:cpu,cpuacct:/x\n3:memory:/docker/1f"
    assert available_bytes(system(tmp_path, V1_MOUNT.format(root="/docker/1f"), group, files)) == 60 * MIB


def test_this_machine_has_some() -> None:
    assert 0 < available_bytes() < 2**60


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such arenas")
def test_threads_share_two_arenas() -> None:
    program = """
import ctypes, threading
from coserve_server.machine.memory import return_freed_memory
return_freed_memory()
together = threading.Barrier(20)
def allocate():
    together.wait()
    kept = [bytes(5000) for _ in range(100)]
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
ctypes.CDLL(None).malloc_stats()
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    assert said.count("Arena ") == 2, said


BETWEEN = """
import ctypes
from pathlib import Path
from coserve_server.machine.memory import trim_memory
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])
blocks = [library.malloc(2000) for _ in range(50_000)]
for block in blocks:
    ctypes.memset(block, 1, 2000)
# The last block stays, so that the free memory below is not at the heap's end.
for block in blocks[:-1]:
    library.free(block)
before = pages()
trim_memory()
print((before - pages()) * 4096)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that keeps it")
def test_memory_freed_between_blocks_in_use_is_returned() -> None:
    done = subprocess.run([sys.executable, "-c", BETWEEN], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 80 * MIB
