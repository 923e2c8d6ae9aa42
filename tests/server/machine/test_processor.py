from pathlib import Path

import pytest

from coserve_server.machine.processor import Processor, read_processor

INTEL = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_tile\n"
AMD = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nmodel name\t: other\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "processor"),
    [
        (INTEL, Processor("Intel(R) Xeon(R)", ("AVX2", "AVX-512", "VNNI", "AMX"))),
        (AMD, Processor("AMD EPYC", ("AVX2",))),
        (ARM, Processor("", ("bf16", "dot product", "i8mm"))),
        (None, Processor("", ())),
    ],
    ids=["intel", "amd", "arm", "unknown"],
)
def test_reads_the_kernel_s_description(tmp_path: Path, text: str | None, processor: Processor) -> None:
    if text is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(text)
    assert read_processor(tmp_path) == processor
