"""Memory that stays in the process."""

import platform
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from coserve_training import memory

REUSE = """
import resource
import torch
from coserve_training import keep_memory

{prepare}

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24).add(1).sum()  # two buffers of 64 MiB, 16,384 pages each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(10):
    step()
print(sum(step() > 10 for _ in range(30)))
"""


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's mallopt")


def steps_with_page_faults(prepare: str) -> int:
    """Return how many of 30 steps take new pages, after warming up. Each allocates and frees 128 MiB."""
    command = [sys.executable, "-c", REUSE.format(prepare=prepare)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@needs_glibc
def test_buffers_are_reused_without_page_faults() -> None:
    limited = "resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))"
    # Under a limit, the heap still grows once or twice.
    assert steps_with_page_faults("keep_memory()") <= 2
    assert steps_with_page_faults(f"{limited}; keep_memory()") <= 2


@needs_glibc
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs huge pages")
def test_the_heap_asks_for_huge_pages() -> None:
    code = "from coserve_training import keep_memory; keep_memory(); print(open('/proc/self/smaps').read())"
    command = [sys.executable, "-c", code]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    heap = next(index for index, line in enumerate(lines) if line.endswith("[heap]"))
    flags = [line for line in lines[heap:] if line.startswith("VmFlags:")]
    assert any("hg" in line.split() for line in flags[:2])


@needs_glibc
def test_other_c_libraries_are_left_alone() -> None:
    other = "import platform; platform.libc_ver = lambda: ('', '')"
    assert steps_with_page_faults(f"{other}; keep_memory()") == 30


@needs_glibc
def test_a_heap_that_cannot_grow_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ulimit -v` may let the heap grow by that much, but not by what malloc adds to it."""
    libc = MagicMock()
    libc.sbrk.return_value = 0
    libc.malloc.return_value = None
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: libc)
    memory.keep_memory()
    libc.madvise.assert_not_called()
