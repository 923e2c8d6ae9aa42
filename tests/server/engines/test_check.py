import pytest

from coserve_server.engines import check
from coserve_server.engines.check import check_engines, find_cuda_fault
from coserve_server.engines.onnxruntime import gpus
from coserve_server.errors import SettingsError


def test_the_engines_of_this_installation_work() -> None:
    onnxruntime, openvino, triton = check_engines()
    assert [engine.fault for engine in (onnxruntime, openvino, triton)] == [None] * 3
    assert "CPU" in onnxruntime.runs_on
    assert openvino.runs_on[0] == "fp32"
    assert list(triton.libraries) == ["tritonclient"]


def test_what_cuda_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_gpus(_: object) -> None:
        raise SettingsError(["gpus: libcudnn.so.9: cannot open shared object file"])

    monkeypatch.setattr(gpus, "check_gpus", check_gpus)
    assert find_cuda_fault() == "libcudnn.so.9: cannot open shared object file"
    monkeypatch.setattr(gpus, "check_gpus", lambda _: None)
    assert find_cuda_fault() is None


def test_two_onnxruntimes_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"onnxruntime": "1.32", "onnxruntime-gpu": "1.32"}
    monkeypatch.setattr(check, "installed_libraries", lambda name: both if name == "onnxruntime" else {})
    onnxruntime, openvino, _ = check_engines()
    assert str(onnxruntime.fault).startswith("both overwrite each other's files: pip uninstall onnxruntime ")
    assert (openvino.libraries, openvino.fault) == ({}, None)


def test_a_library_that_cannot_be_imported_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file\nTraceback")

    monkeypatch.setattr(check, "import_module", broken)
    monkeypatch.setattr(check, "installed_libraries", lambda name: {name: "1"} if name != "openvino" else {})
    onnxruntime, _, triton = check_engines()
    expected = "onnxruntime: cannot open shared object file: pip install --force-reinstall onnxruntime"
    assert onnxruntime.fault == expected
    assert triton.fault is not None
