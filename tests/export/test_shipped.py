"""The shipped configurations are written as `coserve export` writes them today."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInput

from coserve_export.triton_config import to_text

REPOSITORY = Path(__file__).parents[2] / "model_repository"
MODELS = sorted(path.parent.name for path in REPOSITORY.glob("*/config.pbtxt"))


@pytest.mark.parametrize("model", MODELS)
def test_configuration(model: str) -> None:
    text = (REPOSITORY / model / "config.pbtxt").read_text("utf-8")
    config = text_format.Parse(text, ModelConfig())
    assert to_text(config) == text
    takes_images = not model.endswith("_mean")
    expected = ModelInput.FORMAT_NCHW if takes_images else ModelInput.FORMAT_NONE
    assert {tensor.format for tensor in config.input} == {expected}
