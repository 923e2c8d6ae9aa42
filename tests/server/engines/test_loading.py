from pathlib import Path

from coserve_server.engines.embedded.loading import loading_bytes
from coserve_server.ensembles.repository import read_versions
from tests.server.onnx_repository import write_repository


def test_what_loading_takes_grows_with_the_files(tmp_path: Path) -> None:
    write_repository(tmp_path)
    (pair,) = read_versions(tmp_path)["pair"]
    files = sum(member.model_path.stat().st_size for member in pair.members if member.model_path)
    assert loading_bytes(pair) == int(3.5 * files) + 2 * 32 * 2**20
