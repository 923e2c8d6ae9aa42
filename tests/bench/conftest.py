from pathlib import Path

import pytest

from tests.server.onnx_repository import write_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A family to measure: a network with 12 channels, and two members with 8."""
    for name, members, channels in (("large", 1, 12), ("pair", 2, 8)):
        accuracy = {"images": 100, "ensemble": {"top1": 0.5 + 0.1 * members}}
        provenance = {"network": "tiny", "accuracy": accuracy}
        write_repository(tmp_path, name, members=members, channels=channels, provenance=provenance)
    return tmp_path
