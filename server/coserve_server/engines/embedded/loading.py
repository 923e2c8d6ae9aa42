"""Estimate the memory that loading an ensemble takes."""

from coserve_server.ensembles.ensemble import Ensemble

BYTES_PER_BYTE = 3.5
"""Growth of the process per byte of a network's file. While ONNX Runtime or OpenVINO loads and warms a
network of 47 to 263 MB (WideResNet-28-10, ResNet-50, EfficientNet-B3, WideResNet-50-2), the process grows by
at most 2.4 to 4.3 times the file's size."""
BYTES_PER_MEMBER = 32 * 2**20
"""Additional growth per member: in the smallest networks, threads and buffers outweigh the weights, and take
24 to 63 MB."""


def loading_bytes(ensemble: Ensemble) -> int:
    """Estimate the bytes that loading an ensemble's members takes, from the sizes of their files."""
    files = sum(size for member in ensemble.members for _, size, *_ in member.stamps)
    return int(files * BYTES_PER_BYTE) + len(ensemble.members) * BYTES_PER_MEMBER
