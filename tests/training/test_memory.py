"""Memory that stays in the process."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

REUSE = """
import resource
import torch
from coserve_training import keep_memory

{prepare}

def step():
    return torch.ones(2**24).add(1).sum()  # two buffers of 64 MiB, 16,384 pages each

for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's mallopt")


def page_faults(prepare: str) -> int:
    """Return the page faults of 30 steps that allocate and free 128 MiB, after warming up."""
    command = [sys.executable, "-c", REUSE.format(prepare=prepare)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@needs_glibc
def test_buffers_are_reused_without_page_faults() -> None:
    limited = "resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))"
    assert page_faults("keep_memory()") < 500
    assert page_faults(f"{limited}; keep_memory()") < 500


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
    assert page_faults(f"{other}; keep_memory()") > 1_500  # 64 huge pages a step, if they are on
