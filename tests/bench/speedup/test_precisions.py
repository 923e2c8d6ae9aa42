"""bf16 in `coserve bench speedup`: openvino computes fp32 networks in bf16 if the processor supports it."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from coserve_bench.engine import ONNXRUNTIME, OPENVINO
from coserve_bench.speedup.devices import Devices
from coserve_bench.speedup.family import Division, read_family
from coserve_bench.speedup.loading import load
from coserve_bench.speedup.ways import CONCURRENT, Plan, plans
from coserve_cli.main import app
from coserve_server.engines.factory import precisions
from coserve_server.engines.openvino.engine import OpenVinoEngine
from coserve_server.machine.cores import usable_cores

THERE = "bf16" in precisions("openvino")
NOT_IN_ONNXRUNTIME = "bf16, onnxruntime: it cannot compute in bf16; openvino can if the processor supports it"
NOT_HERE = "bf16, openvino: this processor does not support bf16"


def bench(*arguments: str) -> Result:
    quick = ("--repeats", "1", "--seconds", "0", "--json")
    return CliRunner().invoke(app, ["bench", "speedup", *arguments, *quick])


def test_bf16_is_measured_only_in_openvino(repository: Path, tmp_path: Path) -> None:
    result = bench(
        *("--repository", str(repository), "--splits", "2", "--precisions", "fp32,bf16"),
        *("--engines", "onnxruntime,openvino", "--plots", str(tmp_path / "plots")),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    runners = {(row["engine"], row["precision"]) for row in report["rows"]}
    assert runners - {("openvino", "bf16")} == {("onnxruntime", "fp32"), ("openvino", "fp32")}
    assert (("openvino", "bf16") in runners) == THERE
    assert report["missing"] == [NOT_IN_ONNXRUNTIME, *([] if THERE else [NOT_HERE])]
    top1 = {(one["precision"], one["split"]): one["top1"] for one in report["networks"]}
    assert (top1["fp32", 1], top1["fp32", 2]) == (0.6, 0.7)
    unmeasured = {key: None for key in top1 if key[0] == "bf16"}
    assert top1 | unmeasured == top1, "the recorded accuracy is that of fp32"
    assert (tmp_path / "plots" / "accuracy.png").is_file(), "it shows the accuracy of fp32"


def test_bf16_alone_exports_random_weights_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--network", "wide_resnet10_1", "--splits", "1", "--precisions", "bf16")
    if THERE:
        report = json.loads(bench(*arguments, "--engines", "openvino").stdout)
        assert {(row["engine"], row["precision"]) for row in report["rows"]} == {("openvino", "bf16")}
        assert report["missing"] == []
    monkeypatch.setattr(OpenVinoEngine, "precisions", staticmethod(lambda: ["fp32"]))
    for engine, reason in (("openvino", NOT_HERE), ("onnxruntime", NOT_IN_ONNXRUNTIME)):
        result = bench(*arguments, "--engines", engine)
        assert result.exit_code == 1
        assert result.stderr == f"error: {reason}\n"


@pytest.mark.skipif(not THERE, reason="this processor does not support bf16")
def test_bf16_differs_from_fp32(repository: Path, tmp_path: Path) -> None:
    devices = Devices(usable_cores())
    batch = np.ones((1, 3, 8, 8), np.float32)
    _, fp32, _, bf16 = read_family(repository, "tiny", [2], ["fp32", "bf16"], tmp_path).divisions
    assert fp32.ensemble == bf16.ensemble

    async def logits(division: Division) -> np.ndarray:
        networks = load(Plan(CONCURRENT, division, OPENVINO, devices))
        try:
            (runs,) = await networks.run(batch)
            return np.stack([run.logits for run in runs])
        finally:
            await networks.close()

    difference = np.abs(asyncio.run(logits(fp32)) - asyncio.run(logits(bf16))).max()
    assert 1e-4 < difference < 0.1
    assert plans(bf16, ONNXRUNTIME, devices) == []
