"""`coserve serve --engine openvino` gives the default engine's answers."""

from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from coserve_server.engines.factory import precisions
from tests.integration.conftest import Serve, Server
from tests.integration.gateway import LIME, RED, classify, logits, member_logits, refused
from tests.integration.load import until
from tests.server.onnx_repository import add_version, write_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"), "pair", weights=[1.0, 3.0])


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path) -> Server:
    return serve(repository, "--engine", "openvino", repository_poll_ms=50)


def test_images(server: Server, repository: Path) -> None:
    reply = classify(server, RED, LIME).json()
    for index, colour in enumerate([(1, 0, 0), (0, 1, 0)]):
        members = member_logits(repository, "pair", colour)
        np.testing.assert_allclose(logits(reply, index), members[0] / 4 + members[1] * 3 / 4, atol=1e-4)
    assert all(member["device"].startswith("cpu") for member in reply["members"])


def test_bf16_where_the_processor_has_it(serve: Serve, repository: Path, tmp_path: Path) -> None:
    if "bf16" not in precisions("openvino"):
        config = tmp_path / "coserve.toml"
        config.write_text('openvino_precision = "bf16"')
        line = refused("--config", config, "--repository", repository, "--engine", "openvino")
        assert line == "error: settings: openvino_precision: this processor does not support bf16"
        return
    own = serve(repository, "--engine", "openvino", openvino_precision="bf16")
    members = member_logits(repository, "pair", (1, 0, 0))
    expected = members[0] / 4 + members[1] * 3 / 4
    found = logits(classify(own, RED).json(), 0)
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert np.abs(found - expected).max() > 1e-4, "that is not fp32"
    assert own.stop() == 0


def test_tensors_whose_memory_is_the_requests_own(server: Server, repository: Path) -> None:
    tensor = triton.InferInput("images", [2, 3, 8, 8], "FP32")
    images = np.zeros((2, 3, 8, 8), np.float32)
    images[:, 0] = 1
    tensor.set_data_from_numpy(images)
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    found = client.infer("pair", [tensor]).as_numpy("logits")
    client.close()
    members = member_logits(repository, "pair", (1, 0, 0))
    np.testing.assert_allclose(found, [members[0] / 4 + members[1] * 3 / 4] * 2, atol=1e-4)


def test_a_new_version_and_a_stop(server: Server, repository: Path) -> None:
    before = logits(classify(server, RED).json(), 0)
    add_version(repository, "pair", 2)
    until(lambda: classify(server, RED).json()["version"] == "2")
    assert not np.allclose(logits(classify(server, RED).json(), 0), before)
    assert server.stop() == 0
