import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup
from typer.testing import Result

from coserve_export import Deployment, Placement, compatibility

MakeOnnx = Callable[..., Path]
OWN = ["--name", "own", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]


def test_a_run(coserve: Callable[..., Result], run_folder: Path, tmp_path: Path) -> None:
    """Run in a process of its own, to see all output that a user would see."""
    command = [sys.executable, "-c", "from coserve_cli.main import app; app()", "export", str(run_folder)]
    command += ["--precision", "fp16", "--repository", str(tmp_path / "repository")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "difference",
        "wide_resnet10_1_s2_member0",
        "wide_resnet10_1_s2_member1",
        "wide_resnet10_1_s2",
        "version",
    ]
    assert lines[0].split()[-1] == "images"
    assert lines[1].split()[-1] == "64"
    again = coserve(run_folder)
    assert again.exit_code == 1
    assert "already has wide_resnet10_1_s2" in again.stderr


def test_files(
    coserve: Callable[..., Result], make_onnx: MakeOnnx, labels_file: Path, tmp_path: Path
) -> None:
    files = [make_onnx("a.onnx"), make_onnx("b.onnx", seed=1)]
    done = coserve(*files, "--labels", labels_file, *OWN, "--weights", "1,3", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [member["name"] for member in report["members"]] == ["own_member0", "own_member1"]
    assert report["ensemble"] == {"classes": 5}
    assert report["version"] == 1


def test_how_triton_runs_the_members(
    coserve: Callable[..., Result], make_onnx: MakeOnnx, labels_file: Path, tmp_path: Path
) -> None:
    files = [make_onnx("a.onnx"), make_onnx("b.onnx", seed=1)]
    options = ["--placement", "0,1", "--instances", "2", "--threads", "3", "--preferred-batch-sizes", "2,4"]
    options += ["--queue-delay-us", "100", "--parameter", "enable_mem_arena=0", "--cuda", "use_tf32=0"]
    done = coserve(*files, "--labels", labels_file, *OWN, *options, "--tensorrt", "precision_mode=FP16")
    assert done.exit_code == 0, done.output
    written = (tmp_path / "repository/own_member1/config.pbtxt").read_text()
    config = text_format.Parse(written, ModelConfig())
    deployment = Deployment(
        Placement((0, 1)),
        2,
        3,
        (2, 4),
        100,
        {"enable_mem_arena": "0"},
        {"use_tf32": "0"},
        {"precision_mode": "FP16"},
    )
    expected = ModelConfig()
    deployment.apply(expected, 1, 2)
    for field in ("instance_group", "dynamic_batching", "parameters", "optimization"):
        assert getattr(config, field) == getattr(expected, field)


def test_instances_for_a_machine(
    coserve: Callable[..., Result], make_onnx: MakeOnnx, labels_file: Path, tmp_path: Path
) -> None:
    files = [make_onnx("a.onnx"), make_onnx("b.onnx", seed=1)]
    done = coserve(*files, "--labels", labels_file, *OWN, "--placement", "auto", "--cores", "64")
    assert done.exit_code == 0, done.output
    config = text_format.Parse((tmp_path / "repository/own_member1/config.pbtxt").read_text(), ModelConfig())
    assert list(config.instance_group) == [ModelInstanceGroup(kind=ModelInstanceGroup.KIND_CPU, count=8)]
    assert config.parameters["intra_op_thread_count"].string_value == "4"


@pytest.mark.parametrize(
    "name", ["NET.ONNX", "net.onnx.bak", "net", "net.pb", ".hidden", "a b\n.txt", "\udcff.onnx"]
)
def test_onnx_files_are_told_by_their_content(
    coserve: Callable[..., Result], make_onnx: MakeOnnx, labels_file: Path, name: str
) -> None:
    done = coserve(make_onnx(name), "--labels", labels_file, *OWN)
    assert done.exit_code == 0, done.output


def test_what_a_network_needs_is_printed(
    coserve: Callable[..., Result], make_onnx: MakeOnnx, labels_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compatibility, "RUNTIMES", compatibility.RUNTIMES[-1:])
    done = coserve(make_onnx(), "--labels", labels_file, *OWN)
    assert "own_member0 needs ONNX Runtime 1.32 or later (newer than Triton 26.07's)" in done.stdout


def test_a_new_version(coserve: Callable[..., Result], make_onnx: MakeOnnx, labels_file: Path) -> None:
    files = [make_onnx("a.onnx"), make_onnx("b.onnx", seed=1)]
    first = coserve(*files, "--labels", labels_file, *OWN, "--threads", "2")
    assert first.stdout.splitlines()[-1].startswith("version 1 written to ")
    # Nothing to compare them with.
    assert "difference" not in first.stdout
    newer = [make_onnx("a.onnx", seed=2), make_onnx("b.onnx", seed=3)]
    second = coserve(*newer, "--labels", labels_file, *OWN, "--new-version")
    assert second.exit_code == 0, second.output
    assert second.stdout.splitlines()[-1].startswith("version 2 written to ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--checkpoint", "best"], "best.ckpt is missing"),
        (["{run}", "--name", "a_mean"], "'a_mean' is not a valid ensemble name"),
        (["{run}", "--labels", "{labels}", "--stretch"], "--labels, --stretch cannot be used with a run"),
        (["{run}", "{onnx}"], "give either one run folder, or ONNX files"),
        (["{run}", "{run}"], "give either one run folder, or ONNX files"),
        (["{empty}"], "not a run folder"),
        (["{labels}"], "labels.txt counts as an ONNX file, and ONNX files also need --name, --labels"),
        (["{labels}", "--labels", "{labels}", *OWN], "labels.txt: is not an ONNX file"),
        (["none.onnx"], "none.onnx does not exist"),
        (["x" * 300], "xxx does not exist"),
        (["{onnx}", "--labels", "{labels}", *OWN, "--samples", "x" * 300], "xxx is not a folder"),
        (["{onnx}", "--labels", "x" * 300, *OWN], "xxx cannot be read: File name too long"),
        (["{onnx}"], "ONNX files also need --name, --labels, --mean, --std"),
        (["{onnx}", "--precision", "fp16", *OWN], "--precision: ONNX files can only keep their precision"),
        (["{onnx}", "--precision", "int8", "--labels", "{labels}", *OWN], "int8 needs --calibration-data"),
        (["{onnx}", "--max-accuracy-loss", "1", *OWN], "cannot be used with another --precision than int8"),
        (["{onnx}", "{onnx}", "--labels", "{labels}", *OWN], "are the same network"),
        (["{onnx}", "--labels", "none.txt", *OWN], "none.txt cannot be read: No such file"),
        (["{onnx}", "--labels", "{onnx}", *OWN], "is not UTF-8 text"),
        (["{broken}", "--labels", "{labels}", *OWN], "broken.onnx: is not"),
        (["{onnx}", "--labels", "{labels}", *OWN, "--mean", "1,2"], "mean must be three finite numbers"),
        (["{onnx}", "--labels", "{labels}", *OWN, "--weights", "1,2"], "2 weights for 1 members"),
        (["{onnx}", "--labels", "{labels}", *OWN, "--resize-size", "4"], "resize size must be at least 8"),
        (
            ["{onnx}", "--labels", "{labels}", *OWN, "--resize-size", "9", "--stretch"],
            "--stretch does not crop",
        ),
        (["{onnx}", "--labels", "{labels}", *OWN, "--image-size", "16"], "the same size, not 16x16"),
        (["{onnx}", "--labels", "{labels}", *OWN, "--samples", "{empty}"], "has 0 images"),
        (
            ["{onnx}", "--labels", "{labels}", *OWN, "--placement", "gpu"],
            "placement must be auto, cpu or GPUs",
        ),
        (
            ["{onnx}", "--labels", "{labels}", *OWN, "--placement", "0", "--cores", "8"],
            "cores are for members on the CPU: leave them out",
        ),
        (
            ["{onnx}", "--labels", "{labels}", *OWN, "--parameter", "threads=1"],
            "unknown parameters of Triton's",
        ),
        (["{onnx}", "--labels", "{labels}", *OWN, "--new-version"], "to add a version to"),
        (["{run}", "--new-version", "--threads", "2"], "--threads cannot be used with --new-version"),
        (["{run}", "--new-version", "--overwrite"], "give either --new-version or --overwrite"),
        (
            ["{onnx}", "--labels", "{labels}", *OWN, "--new-version", "--overwrite"],
            "give either --new-version",
        ),
    ],
)
def test_errors_are_one_line(
    coserve: Callable[..., Result],
    make_onnx: MakeOnnx,
    labels_file: Path,
    run_folder: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\xff" * 100)
    (tmp_path / "empty").mkdir()
    places = {
        "run": run_folder,
        "onnx": make_onnx(),
        "labels": labels_file,
        "broken": tmp_path / "broken.onnx",
        "empty": tmp_path / "empty",
    }
    done = coserve(*(argument.format(**places) for argument in arguments))
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--mean", "a,b,c"],
        ["--image-size", "bigxsmall"],
        ["--precision", "int4"],
        ["--max-accuracy-loss", "nan"],
        ["--max-accuracy-loss", "-1"],
        ["--max-batch-size", "0"],
        *([option, str(2**31)] for option in ("--max-batch-size", "--instances", "--threads", "--cores")),
        ["--queue-delay-us", str(2**31)],
        ["--cuda", "use_tf32"],
    ],
)
def test_invalid_options_are_usage_errors(coserve: Callable[..., Result], arguments: list[str]) -> None:
    assert coserve("x.onnx", *arguments).exit_code == 2
