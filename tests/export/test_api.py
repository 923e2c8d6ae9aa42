import subprocess
import sys

import pytest

import coserve_export


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_is_light() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "numpy", "tritonclient"}
    run_python(f"import sys, coserve_export; assert not {heavy} & set(sys.modules)")


def test_onnx_files_do_not_need_torch() -> None:
    names = "export_onnx, Deployment, Int8, Report, ExportError"
    run_python(f"import sys; sys.modules['torch'] = None; from coserve_export import {names}")


def test_public_names_resolve() -> None:
    for name in coserve_export.__all__:
        assert getattr(coserve_export, name).__name__ == name
        assert name in dir(coserve_export)
    with pytest.raises(AttributeError, match="module 'coserve_export' has no attribute 'export_torch'"):
        _ = coserve_export.export_torch
