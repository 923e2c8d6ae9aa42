"""What is noted of the files that were last tried to be served."""

import shutil
from pathlib import Path

import pytest

from coserve_server.catalogue.reload import Reloader
from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from coserve_server.errors import RepositoryError
from tests.server.catalogue.reloading import with_reloader
from tests.server.onnx_repository import write_repository


def test_what_has_gone_is_forgotten(tmp_path: Path) -> None:
    """A server may see ever new names."""
    for name in ("kept", "pair"):
        write_repository(tmp_path, name)

    async def use(engine: OnnxRuntimeEngine, reloader: Reloader) -> None:
        def attempts() -> set[str]:
            return set(reloader.catalogue.attempts)

        (tmp_path / "broken").mkdir()
        shutil.copy(tmp_path / "pair/config.pbtxt", tmp_path / "broken")
        await reloader.refresh()
        assert attempts() == {"kept", "pair", "broken"}
        (tmp_path / "pair").rename(tmp_path / ".pair")
        shutil.rmtree(tmp_path / "broken")
        await reloader.refresh()
        assert attempts() == {"kept"}
        (tmp_path / ".pair").rename(tmp_path / "pair")
        await reloader.load("pair")
        assert attempts() == {"kept", "pair"}
        await reloader.unload("pair")
        (tmp_path / "pair/config.pbtxt").write_text("broken")
        with pytest.raises(RepositoryError):
            await reloader.load("pair")
        assert attempts() == {"kept"}

    with_reloader(tmp_path, use)
