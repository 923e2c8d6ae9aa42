import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig
from typer.testing import Result

from coserve_export.authors.checkpoint import load_checkpoint
from coserve_export.authors.datasets import labels_of
from coserve_export.authors.recognise import recognise
from coserve_export.authors.weights import build_member
from coserve_server import create_app, load_settings

Save = Callable[..., Path]
MEAN = np.array([0.4914, 0.4822, 0.4465])
STD = np.array([0.2023, 0.1994, 0.2010])


def parameter(repository: Path, name: str, key: str) -> dict[str, Any]:
    config = text_format.Parse((repository / name / "config.pbtxt").read_text("utf-8"), ModelConfig())
    value: dict[str, Any] = json.loads(config.parameters[key].string_value)
    return value


def test_a_checkpoint_is_exported_measured_and_served(
    save: Save, coserve: Callable[..., Result], tmp_path: Path
) -> None:
    data = tmp_path / "data/test"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for label in labels_of("cifar10"):
        (data / label).mkdir(parents=True)
        Image.fromarray(pixels).save(data / label / "0.png")
    file = save()
    result = coserve(file, "--evaluation-data", data.parent, "--network", "wide_resnet10_1", "--split", 2)
    assert result.exit_code == 0, result.stderr
    name = "wide_resnet10_1_s2_cifar10"
    assert "the 10 classes are taken to be cifar10's" in result.stdout
    assert "top-1 accuracy 10.00% of 10 images" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[1:4]] == [
        f"{name}_member0",
        f"{name}_member1",
        name,
    ]

    repository = tmp_path / "repository"
    assert parameter(repository, name, "preprocessing") == {
        "height": 32,
        "width": 32,
        "resize_size": 32,
        "interpolation": "bilinear",
        "mean": MEAN.tolist(),
        "std": STD.tolist(),
    }
    provenance = parameter(repository, name, "provenance")
    assert provenance["claimed"] == {
        "checkpoint_top1": 0.815,
        "arch": "wide_resnet10_1",
        "file": "model_best.pth.tar",
    }
    assert provenance["accuracy"]["ensemble"]["top1"] == 0.1
    assert provenance["training"] == {"epochs": 300, "checkpoint": "best"}

    checkpoint = load_checkpoint(file, "it")
    config = recognise(checkpoint, {}).member
    images = torch.from_numpy(((pixels / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[None])
    with torch.inference_mode():
        expected = np.mean(
            [build_member(config, 10, w, "it")(images).numpy()[0] for w in checkpoint.members], 0
        )
    png = (data / "cat/0.png").read_bytes()
    with TestClient(create_app(load_settings(repository=repository))) as client:
        reply = client.post("/v1/classify", files={"files": ("x.png", png)}, params={"top_k": 10})
    assert reply.status_code == 200, reply.text
    predictions = sorted(reply.json()["results"][0]["predictions"], key=lambda p: p["class_id"])
    assert [prediction["label"] for prediction in predictions] == list(labels_of("cifar10"))
    assert [prediction["logit"] for prediction in predictions] == pytest.approx(expected, abs=1e-4)


def test_repeated_labels_are_named(save: Save, coserve: Callable[..., Result], tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("crane\nheron\ncrane\n" + "".join(f"{number}\n" for number in range(7)))
    result = coserve(save(), "--labels", labels)
    assert result.exit_code == 0, result.stderr
    assert "classes 0, 2 have the same label 'crane'" in " ".join(result.stdout.split())


def test_misplaced_options_are_refused(save: Save, coserve: Callable[..., Result]) -> None:
    file = save()
    for options, message in (
        (["--mean", "0,0,0"], "--mean cannot be used with a checkpoint of the paper's authors"),
        (["--checkpoint", "best"], "--checkpoint cannot be used with a checkpoint of the paper's authors"),
        (
            ["--calibration-data", file],
            "--calibration-data cannot be used with another --precision than int8",
        ),
        (["--split", 3], f"{file} holds 2 members, but --split says 3"),
        (["--image-size", "32x64"], "--image-size: the authors' images are square, not 32 x 64"),
        ([file], "is a checkpoint with all members; give it alone"),
    ):
        result = coserve(file, *options)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
