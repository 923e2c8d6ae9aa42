"""What members on GPUs are refused for, and how it is said."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
import pytest

from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import create_engine
from coserve_server.engines.onnxruntime import (
    cuda_driver,
    cuda_libraries,
    gpus,
    sessions,
)
from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from coserve_server.engines.onnxruntime.sessions import create_session
from coserve_server.ensembles.repository import read_repository
from coserve_server.errors import EngineError, SettingsError
from coserve_server.machine.cores import Cores
from coserve_server.settings import load_settings
from tests.server.engines.embedded import infer, with_engine
from tests.server.engines.fake_cuda import HAS_CUDA, FakeDriver, Status
from tests.server.onnx_repository import write_repository

T = TypeVar("T")
ONE = Cores(1, None)
CUDA = "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("free_mib", "limit", "fault"),
    [
        (40, None, r"pair_member0 .* takes at least 64 MiB of GPU 0, which has 40 MiB free"),
        (100, 50, r"pair_member0 .* takes at least 64 MiB, but gpu_memory_mib is 50"),
    ],
)
def test_a_load_that_does_not_fit_is_refused(
    tmp_path: Path, driver: FakeDriver, free_mib: int, limit: int | None, fault: str
) -> None:
    driver.free = free_mib * 2**20
    ensembles = read_repository(write_repository(tmp_path))
    with pytest.raises(EngineError, match=fault):
        OnnxRuntimeEngine(EngineOptions(gpus=(0, 1), gpu_memory_mib=limit), ONE, ensembles)
    assert not driver.memory


def test_int8_is_refused(tmp_path: Path, driver: FakeDriver) -> None:
    write_repository(tmp_path, provenance={"export": {"precision": "int8"}})
    with pytest.raises(
        EngineError, match=r"ensemble pair is int8, which .* cannot run on GPUs: export it in"
    ):
        OnnxRuntimeEngine(EngineOptions(gpus=(0,)), ONE, read_repository(tmp_path))


def test_tf32_only_if_asked_for_and_named(tmp_path: Path, driver: FakeDriver) -> None:
    assert gpus.provider(0, EngineOptions())[1]["use_tf32"] == "0"
    options = EngineOptions(gpus=(0,), gpu_precision="tf32", gpu_memory_mib=3)
    assert gpus.provider(1, options)[1] == {
        "device_id": "1",
        "enable_cuda_graph": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": str(3 * 2**20),
    }
    write_repository(tmp_path)

    async def use(engine: EmbeddedEngine) -> None:
        assert engine.describe(engine.ensembles["pair"]).endswith("of GPU 0, in tf32")
        assert {run.device for run in await infer(engine, np.zeros((1, 3, 8, 8), np.float32))} == {
            "cuda:0 in tf32"
        }

    options = replace(options, gpu_memory_mib=None)
    with_engine(tmp_path, use, options, ONE)


def test_a_gpu_that_does_not_exist_is_named(driver: FakeDriver) -> None:
    with pytest.raises(SettingsError, match="gpus: there is no GPU 2, 7; the driver shows 2, from 0 on"):
        gpus.check_gpus((0, 2, 7))


def test_a_missing_driver_is_named(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_flags: int) -> None:
        raise RuntimeError("no library\nat all")

    monkeypatch.setattr(driver, "cuInit", missing)
    with pytest.raises(SettingsError, match=r"gpus: NVIDIA's driver is missing: no library$"):
        cuda_driver.count_gpus()
    monkeypatch.setattr(driver, "cuInit", lambda _flags: (Status.CUDA_ERROR_OUT_OF_MEMORY,))
    with pytest.raises(SettingsError, match=r"driver does not work: .*cuda error out of memory"):
        cuda_driver.count_gpus()
    monkeypatch.setattr(cuda_driver, "driver", None)
    with pytest.raises(SettingsError, match=r"cuda-bindings is not installed: pip install 'coserve\[gpu\]'"):
        cuda_driver.count_gpus()


@pytest.mark.parametrize(
    ("refusal", "provider", "cudnn", "reason"),
    [
        ("CUDA Provider not available", "no-provider.so", "libc.so.6", r"\S*no-provider\.so: cannot open"),
        (
            "driver version is insufficient\nat all",
            "libc.so.6",
            "libc.so.6",
            "driver version is insufficient",
        ),
        (None, "libc.so.6", "libcudnn-of-no-version.so.0", r"libcudnn-of-no-version\.so\.0: cannot open"),
    ],
    ids=["provider", "driver", "cudnn"],
)
def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, refusal: str | None, provider: str, cudnn: str, reason: str
) -> None:
    monkeypatch.setattr(cuda_libraries, "PROVIDER", provider)
    monkeypatch.setattr(cuda_libraries, "CUDNN", cudnn)
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", use_gpu(refusal))
    with pytest.raises(SettingsError, match=rf"cannot use CUDA: {reason}.*: pip install 'onnxruntime-gpu"):
        cuda_libraries.load(3)


def test_onnxruntime_itself_loads_its_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever else loads it lacks the symbol Provider_GetHost.
    monkeypatch.setattr(cuda_libraries, "PROVIDER", "no-provider.so")
    monkeypatch.setattr(cuda_libraries, "CUDNN", "libc.so.6")
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", use_gpu(None))
    cuda_libraries.load(3)


def use_gpu(refusal: str | None) -> Callable[..., None]:
    """Return what stands in for a copy to GPU 3."""

    def copy(_array: Any, device: str, gpu: int) -> None:
        assert (device, gpu) == ("cuda", 3)
        if refusal:
            raise RuntimeError(refusal)

    return copy


@pytest.mark.skipif(HAS_CUDA, reason="there may be GPUs")
def test_without_cuda_nothing_runs_on_the_cpu_instead(tmp_path: Path) -> None:
    write_repository(tmp_path)
    settings = load_settings(repository=tmp_path, gpus="0, 1")
    assert settings.gpus == (0, 1)
    with pytest.raises(SettingsError, match=r"gpus: this ONNX Runtime has no CUDA.*onnxruntime-gpu\[cuda"):
        create_engine(EngineOptions.from_settings(settings), Cores(2, None))
    ensemble = read_repository(tmp_path)["pair"]
    with (
        pytest.raises(EngineError, match=r"pair_member0 .* cannot be run by CUDA.* that run on the CPU only"),
        pytest.warns(UserWarning, match=CUDA),
    ):
        create_session(ensemble, ensemble.members[0], 1, gpus.provider(0, EngineOptions()))


def test_the_first_error_of_onnxruntime_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = read_repository(write_repository(tmp_path))["pair"]

    def fail(*_arguments: Any, **_options: Any) -> None:
        for reason in ("error: libcudnn.so.9: no such file", "no node was assigned"):
            sessions._forward(sessions.ERROR, "", "", "", reason)
        raise RuntimeError("cannot go on")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(
        EngineError, match=r"CUDAExecutionProvider alone: error: libcudnn\.so\.9: no such file"
    ):
        create_session(ensemble, ensemble.members[0], 1, gpus.provider(0, EngineOptions()))
    with pytest.raises(EngineError, match="cannot be loaded: cannot go on"):
        create_session(ensemble, ensemble.members[0], 1)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"gpus": "0", "engine": "openvino"}, "gpus: only engine onnxruntime uses them"),
        ({"gpus": "0", "member_threads": 2}, "member_threads: members on gpus take no share"),
        ({"cuda_graphs": "true"}, "cuda_graphs: only members on gpus"),
        ({"gpu_precision": "tf32"}, "gpu_precision: only members on gpus"),
        ({"gpu_memory_mib": "100"}, "gpu_memory_mib: only members on gpus"),
        ({"gpus": "0", "gpu_precision": "bf16"}, "gpu_precision: Input should be 'fp32' or 'tf32'"),
        ({"gpus": "0,0"}, "gpus: .*each number may be named once"),
        ({"gpus": "0,x"}, "gpus: Input should be a valid integer"),
        ({"gpus": "-1"}, "gpus: Input should be greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        load_settings(repository=tmp_path, **settings)
