import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from PIL import Image
from typer.testing import CliRunner, Result

from coserve_bench.speedup.graphs import fuse, multiply_adds, zero_weights
from coserve_bench.speedup.plots import draw
from coserve_bench.speedup.report import Report
from coserve_bench.speedup.table import table
from coserve_cli.main import app
from coserve_server.engines.onnxruntime import gpus
from coserve_server.machine.cores import usable_cores
from coserve_training.networks import member_network
from tests.server.onnx_repository import LABELS, network, write_repository

ROOT = Path(__file__).parents[3]
NETWORK = "wide_resnet10_2"
WAYS = {"one_device", "all_devices", "concurrent", "fused", "fused_parallel"}


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "speedup", *arguments])


def speedup_page(*arguments: str) -> "subprocess.CompletedProcess[str]":
    script = str(ROOT / "benchmarks" / "speedup_page.py")
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Measure random weights; return the JSON and the folder of the plots."""
    folder = tmp_path_factory.mktemp("speedup")
    result = bench(
        *("--network", NETWORK, "--splits", "2", "--batch-sizes", "1,2", "--repeats", "8"),
        *("--precisions", "fp32,bf16", "--output", str(folder / "out.json"), "--plots", str(folder)),
    )
    assert result.exit_code == 0, result.output
    return json.loads((folder / "out.json").read_text()), folder


class Calibration(CalibrationDataReader):
    def __init__(self, images: np.ndarray) -> None:
        self.batches = iter([{"images": images}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def multiply_adds_of(name: str, split: int) -> int:
    """Count multiply-adds with hooks while torch runs one image through all members."""
    config = member_network(name, split)
    total = 0

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    net = config.build(10).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    return split * total


def test_every_way_is_measured_at_every_batch_size(measured: tuple[dict[str, Any], Path]) -> None:
    report, _ = measured
    cores = usable_cores().count
    found = {(row["split"], row["batch_size"], row["way"]) for row in report["rows"]}
    large = {"one_device", "all_devices"} if cores > 1 else {"one_device"}
    pair = WAYS if cores > 1 else WAYS - {"all_devices"}
    assert found == {
        (split, size, way) for size in (1, 2) for split, ways in ((1, large), (2, pair)) for way in ways
    }
    assert all(row["engine"] == "onnxruntime" and row["precision"] == "fp32" for row in report["rows"])
    assert all(row["repeats"] == 8 for row in report["rows"])
    assert report["machine"]["devices"] == "cores"
    assert report["machine"]["count"] == cores
    assert min(report["peak_gflops"].values()) > 0
    assert report["other_work"] is None or report["other_work"] >= 0
    assert [one["members"] for one in report["networks"]] == [[NETWORK], ["wide_resnet10_1"] * 2]


def test_figures_agree_with_each_other(measured: tuple[dict[str, Any], Path]) -> None:
    report, _ = measured
    rows = {(row["split"], row["batch_size"], row["way"]): row for row in report["rows"]}
    cost = {split: multiply_adds_of(NETWORK, split) for split in (1, 2)}
    assert {one["split"]: one["multiply_adds"] for one in report["networks"]} == cost
    for (split, size, _), row in rows.items():
        ms = row["ms"]
        assert 0 < ms["q1"] <= ms["median"] <= ms["q3"]
        assert row["images_per_s"] == pytest.approx(1000 * size / ms["median"])
        alone = rows[1, size, "one_device"]["ms"]["median"]
        assert row["speedup"] == pytest.approx(alone / ms["median"])
        assert row["ideal_speedup"] == pytest.approx(row["devices"] * cost[1] / cost[split])
        in_turn = rows[split, size, "one_device"]["ms"]["median"]
        assert row["floor_ms"] == pytest.approx(in_turn / row["devices"])
        peak = report["peak_gflops"]["one_device" if row["devices"] == 1 else "all_devices"]
        if row["devices"] in (1, report["machine"]["count"]):
            gflops = 2 * cost[split] * size / ms["median"] / 1e6
            assert row["peak_fraction"] == pytest.approx(gflops / peak)
        assert row["memory_mib"] is None or row["memory_mib"] > 0


def test_only_concurrent_members_overlap(measured: tuple[dict[str, Any], Path]) -> None:
    report, _ = measured
    for row in report["rows"]:
        overlap = row["overlap"]["median"]
        if row["way"] == "concurrent":
            assert 0 < overlap <= row["split"] + 1e-6
        elif row["split"] > 1 and row["way"] in ("one_device", "all_devices"):
            assert 0 < overlap <= 1
        else:
            assert overlap == 1


def test_names_what_is_not_available(measured: tuple[dict[str, Any], Path]) -> None:
    report, _ = measured
    assert [text.partition(":")[0] for text in report["missing"]] == ["bf16, onnxruntime"]


def test_a_stored_report_gives_the_same_table_and_plots(
    measured: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    values, folder = measured
    report = Report.read(folder / "out.json")
    assert json.loads(json.dumps(report.to_json())) == values
    lines = list(table(report))
    assert sum(line.endswith(tuple("0123456789")) and "concurrent" in line for line in lines) == 2
    assert lines[-1].startswith("not measured: bf16, onnxruntime: it cannot compute")
    (file,) = draw(report, tmp_path)
    for plot in (file, folder / "latency.png"):
        with Image.open(plot) as image:
            assert image.format == "PNG"
            image.load()
    assert not (folder / "accuracy.png").exists(), "random weights have no accuracy"


def test_the_page_has_the_stored_figures(measured: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    kept = speedup_page("--check")
    assert kept.returncode == 0, kept.stderr

    values, folder = measured
    results = tmp_path / "results"
    page = tmp_path / "performance.md"
    results.mkdir()
    (results / f"{NETWORK}.json").write_bytes((folder / "out.json").read_bytes())
    page.write_text((ROOT / "docs/results/performance.md").read_text("utf-8"), "utf-8")
    places = ("--results", str(results), "--page", str(page), "--plots", str(tmp_path / "images"))
    assert speedup_page(*places).returncode == 0
    assert speedup_page(*places, "--check").returncode == 0
    concurrent = next(row for row in values["rows"] if row["way"] == "concurrent")
    figures = f"| {concurrent['ms']['median']:.2f} | {concurrent['overlap']['median']:.2f} |"
    assert figures in page.read_text("utf-8")
    assert f"![Latency by S and batch size](images/{NETWORK}/latency.png)" in page.read_text("utf-8")
    assert (tmp_path / "images" / NETWORK / "latency.png").is_file()

    page.write_text(page.read_text("utf-8").replace(figures, figures.replace("| ", "| 1")), "utf-8")
    drifted = speedup_page(*places, "--check")
    assert drifted.returncode == 1
    assert "run speedup_page.py" in drifted.stderr


def test_a_repository_with_accuracies_is_plotted(repository: Path, tmp_path: Path) -> None:
    result = bench(
        *("--repository", str(repository), "--splits", "1,2,4", "--repeats", "1", "--seconds", "0"),
        *("--plots", str(tmp_path / "plots"), "--json", "--engines", "onnxruntime,openvino"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    ways = {(row["engine"], row["split"], row["way"]) for row in report["rows"]}
    fused = {(engine, 2, "fused") for engine in ("onnxruntime", "openvino")}
    assert fused | {("onnxruntime", 2, "fused_parallel")} <= ways
    assert ("openvino", 2, "fused_parallel") not in ways, "only ONNX Runtime has a parallel executor"
    assert report["machine"]["openvino"] == version("openvino")
    assert report["network"] == "tiny"
    assert [one["top1"] for one in report["networks"]] == [0.6, 0.7]
    assert [text.partition(":")[0] for text in report["missing"]] == ["fp32, S=4"]
    with Image.open(tmp_path / "plots" / "accuracy.png") as image:
        image.load()


def test_refuses_weights_that_make_branches_vanish(repository: Path) -> None:
    file = repository / "pair_member1" / "1" / "model.onnx"
    model = onnx.load(file)
    (kernel,) = (one for one in model.graph.initializer if one.name == "kernel0")
    kernel.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(kernel.dims), np.float32), "kernel0"))
    onnx.save(model, file)
    result = bench("--repository", str(repository), "--splits", "2")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: pair_member1: all weights of 'kernel0' are zero")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--network", "huge"], "has no ensemble of huge, only of tiny"),
        (["--precisions", "int8"], "int8, S=1, S=2"),
        (["--batch-sizes", "9"], "takes at most 8 images, not 9"),
        (["--gpus", "0,1"], "no CUDAExecutionProvider"),
    ],
)
def test_refuses_what_is_not_available(repository: Path, arguments: list[str], error: str) -> None:
    if "--gpus" in arguments and gpus.CUDA in ort.get_available_providers():
        pytest.skip("there may be GPUs")
    result = bench("--repository", str(repository), "--splits", "1,2", *arguments)
    assert result.exit_code == 1
    assert error in result.stderr
    assert result.stderr.count("\n") == 1


def test_refuses_what_cannot_be_compared(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    alone = write_repository(tmp_path_factory.mktemp("alone"), "pair", provenance={"network": "tiny"})
    assert "tiny in fp32 lacks S=1" in bench("--repository", str(alone)).stderr
    write_repository(repository, "other", provenance={"network": "odd"})
    assert "choose with --network: odd, tiny" in bench("--repository", str(repository)).stderr
    write_repository(repository, "twin", provenance={"network": "tiny"})
    twins = bench("--repository", str(repository), "--network", "tiny")
    assert "pair and twin are both S=2 in fp32 of tiny" in twins.stderr


@pytest.mark.parametrize(
    "arguments",
    [[], ["--splits", "0"], ["--batch-sizes", "a"], ["--engines", "tvm"], ["--precisions", "fp4"]],
)
def test_refuses_meaningless_options(arguments: list[str]) -> None:
    given = ["--network", NETWORK] if arguments else []
    assert bench(*given, *arguments).exit_code == 2


def test_a_fused_graph_gives_the_weighted_mean() -> None:
    members = [network(seed, 8, 8, 1) for seed in range(3)]
    weights = [1.0, 2.0, 5.0]
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)

    def run(model: onnx.ModelProto) -> np.ndarray:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(["logits"], {"images": images})[0])

    fused = fuse(members, len(LABELS), weights)
    onnx.checker.check_model(fused, full_check=True)
    expected = np.average([run(member) for member in members], axis=0, weights=weights)
    np.testing.assert_allclose(run(fused), expected, rtol=1e-4, atol=1e-4)
    assert multiply_adds(fused) == sum(map(multiply_adds, members))


def test_members_in_int8_cost_and_fuse_as_in_fp32(tmp_path: Path) -> None:
    """Members are quantised as by `coserve export --precision int8`."""
    members = []
    for seed in range(2):
        files = tmp_path / f"fp32_{seed}.onnx", tmp_path / f"int8_{seed}.onnx"
        onnx.save(network(seed, 8, 8, 1), files[0])
        images = np.random.default_rng(seed).normal(size=(4, 3, 8, 8)).astype(np.float32)
        quantize_static(*files, Calibration(images), quant_format=QuantFormat.QDQ, per_channel=True)
        members.append(onnx.load(files[1]))
        assert multiply_adds(members[-1]) == multiply_adds(network(seed, 8, 8, 1))
        assert not list(zero_weights(members[-1]))
    assert multiply_adds(fuse(members, len(LABELS))) == sum(map(multiply_adds, members))


def test_counts_grouped_convolutions_and_sees_zero_scales() -> None:
    vectors = {"scale": np.zeros(8), "shift": np.ones(8), "mean": np.zeros(8), "variance": np.ones(8)}
    tensors = {"kernel": np.ones((8, 3, 3, 3)), "grouped": np.ones((8, 2, 3, 3)), **vectors}
    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            make("Conv", ["images", "kernel"], ["a"], pads=[1] * 4),
            make("BatchNormalization", ["a", *vectors], ["b"]),
            make("Conv", ["b", "grouped"], ["logits"], pads=[1] * 4, strides=[2, 2], group=4),
        ],
        "network",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 8, 4, 4])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    assert multiply_adds(model) == 8 * 8 * 8 * (3 * 9) + 8 * 4 * 4 * (2 * 9)
    assert list(zero_weights(model)) == ["scale"]
