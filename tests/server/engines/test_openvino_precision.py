"""The engine openvino computes in the chosen precision, whatever else the processor supports."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from coserve_server.engines.base import Images
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import create_engine, precisions
from coserve_server.engines.openvino.engine import OpenVinoEngine
from coserve_server.errors import EngineError, SettingsError
from coserve_server.settings import Precision, load_settings
from tests.server.engines.embedded import TWO, infer, with_engine
from tests.server.onnx_repository import write_repository

IMAGES = np.random.default_rng(9).random((8, 3, 8, 8), np.float32)


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self.batches = iter([{"images": IMAGES}])

    def get_next(self) -> dict[str, Images] | None:
        return next(self.batches, None)


async def convolutions(engine: EmbeddedEngine) -> list[str]:
    """Return the precisions of the first member's convolutions, as OpenVINO has compiled them."""
    (loaded,) = engine._loaded.values()
    graph = loaded.members[0]._request.get_compiled_model().get_runtime_model()
    layers = [node.get_rt_info() for node in graph.get_ops()]
    return [info["runtimePrecision"].astype(str) for info in layers if info["layerType"] == "Convolution"]


def test_logits_have_the_precision_even_with_a_shared_cache(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "models", depth=3)
    cache = tmp_path / "cache"

    def differences(precision: Precision) -> list[float]:
        """Return each member's largest difference from ONNX Runtime's logits."""
        runs = with_engine(
            folder,
            lambda engine: infer(engine, IMAGES),
            EngineOptions("openvino", precision=precision, cache=cache),
        )
        sessions = (ort.InferenceSession(folder / f"pair_member{i}/1/model.onnx") for i in range(2))
        logits = (session.run(None, {"images": IMAGES})[0] for session in sessions)
        return [float(np.abs(run.logits - own).max()) for run, own in zip(runs, logits, strict=True)]

    assert max(differences("fp32")) < 1e-4
    if "bf16" in precisions("openvino"):
        found = differences("bf16")
        assert min(found) > 1e-4, "8 bits of significand give other logits than 24"
        assert max(found) < 0.1
        assert max(differences("fp32")) < 1e-4, "the network cached for bf16 is not used"
    else:
        with pytest.raises(SettingsError, match="this processor does not support bf16"):
            differences("bf16")


@pytest.mark.parametrize(
    ("precision", "int8", "computed"),
    [
        ("fp32", False, {"f32"}),
        ("fp32", True, {"u8", "i8"}),
        ("bf16", False, {"bf16"}),
        ("bf16", True, {"u8", "i8"}),
    ],
)
def test_quantised_layers_stay_quantised(
    tmp_path: Path, precision: Precision, int8: bool, computed: set[str]
) -> None:
    if precision not in precisions("openvino"):
        pytest.skip(f"this processor does not support {precision}")
    write_repository(tmp_path, depth=2, channels=16)
    if int8:
        file = tmp_path / "pair_member0/1/model.onnx"
        quantize_static(file, file, Calibration(), quant_format=QuantFormat.QDQ, per_channel=True)
    try:
        found = with_engine(tmp_path, convolutions, EngineOptions("openvino", precision=precision))
    except EngineError as error:
        if not (int8 and precision == "bf16" and "No suitable implementations" in str(error)):
            raise
        pytest.skip("OpenVINO has no kernels for int8 beside bf16 on this processor")
    assert len(found) == 2
    assert set(found) <= computed


def test_a_precision_that_the_processor_lacks_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(repository=tmp_path, engine="openvino", openvino_precision="bf16")
    assert EngineOptions.from_settings(settings).precision == "bf16"
    monkeypatch.setattr(OpenVinoEngine, "precisions", staticmethod(lambda: ["fp32"]))
    with pytest.raises(SettingsError) as caught:
        create_engine(EngineOptions.from_settings(settings), TWO)
    assert caught.value.faults == ["openvino_precision: this processor does not support bf16"]


def test_onnxruntime_computes_in_fp32() -> None:
    assert precisions("onnxruntime") == ["fp32"]
    assert precisions("openvino")[0] == "fp32"
