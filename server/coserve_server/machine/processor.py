"""The processor's model and its instructions for neural networks: proc_cpuinfo(5)."""

from dataclasses import dataclass
from pathlib import Path

from coserve_server.machine.cgroups import read_file

FEATURES = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "bf16": {"avx512_bf16", "bf16"},
    "AMX": {"amx_tile"},
    "dot product": {"asimddp"},
    "i8mm": {"i8mm"},
}
"""The kernel's flags, any of which stands for a feature; the last ones are ARM's."""


@dataclass(frozen=True)
class Processor:
    """A processor.

    Attributes:
        model: its name; empty if unknown.
        features: those of `FEATURES` that it has.
    """

    model: str
    features: tuple[str, ...]


def read_processor(root: Path = Path("/")) -> Processor:
    """Describe the first processor; without /proc, nothing is known.

    Args:
        root: folder of `proc`; tests use a temporary one.
    """
    fields: dict[str, str] = {}
    for line in read_file(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    flags = {*fields.get("flags", "").split(), *fields.get("features", "").split()}
    features = tuple(name for name, any_of in FEATURES.items() if flags & any_of)
    return Processor(fields.get("model name", ""), features)
