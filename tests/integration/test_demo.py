"""The shipped ensembles, served as `make demo` serves them."""

import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from tests.integration.conftest import Serve, Server

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
LEAST_TOP1 = {
    "wide_resnet10_4_s1": 0.87,
    "wide_resnet10_4_s2": 0.88,
    "wide_resnet10_4_s4": 0.87,
    "wide_resnet16_4_s1": 0.90,
    "wide_resnet16_4_s2": 0.90,
    "wide_resnet16_4_s4": 0.89,
}
ENSEMBLES = {name: int(name[-1]) for name in LEAST_TOP1}


@pytest.fixture(scope="module")
def server(serve: Serve) -> Server:
    return serve(REPOSITORY, "--default-model", "wide_resnet16_4_s2")


@pytest.fixture(scope="module")
def models(server: Server) -> dict[str, dict[str, Any]]:
    with server.http() as http:
        return {model["name"]: model for model in http.get("/v1/models").json()["models"]}


def picture(seed: int) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 11, 3)).astype(np.uint8)
    return Image.fromarray(blocks).resize((110, 90), Image.Resampling.BICUBIC)


def tensor(image: Image.Image, preprocessing: dict[str, Any]) -> np.ndarray:
    """Preprocess as the contract says, independently of the server's code."""
    scale = preprocessing["resize_size"] / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left = round((image.width - 32) / 2)
    top = round((image.height - 32) / 2)
    pixels = np.asarray(image.crop((left, top, left + 32, top + 32))) / 255
    normalised = (pixels - preprocessing["mean"]) / preprocessing["std"]
    return normalised.transpose(2, 0, 1)[None].astype(np.float32)


def test_the_demo_target_serves_this_repository() -> None:
    command = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "coserve serve --repository model_repository --default-model wide_resnet16_4_s2" in command


def test_what_is_shipped_is_described(models: dict[str, dict[str, Any]]) -> None:
    assert {name: len(model["members"]) for name, model in models.items()} == ENSEMBLES
    recipes = {name: model["provenance"]["training"]["recipe_hash"] for name, model in models.items()}
    # Others could not be compared with the undivided network.
    assert not [name for name in recipes if recipes[name] != recipes[f"{name[:-1]}1"]]
    for name, model in models.items():
        provenance = model["provenance"]
        assert f"{provenance['network']}_s{provenance['split']}" == name
        assert provenance["export"]["max_abs_difference"] <= 1e-4
        assert provenance["accuracy"]["images"] == 5000
        assert len(provenance["accuracy"]["members"]) == ENSEMBLES[name]
        assert len(provenance["accuracy"]["subsets"]) == 2 ** ENSEMBLES[name] - 1
        assert len(provenance["calibration"]["temperatures"]) == ENSEMBLES[name]
        assert provenance["accuracy"]["ensemble"]["top1"] > LEAST_TOP1[name]
        assert model["labels"][3] == "cat"


@pytest.mark.parametrize("name", ENSEMBLES)
def test_answers_are_the_mean_of_the_members(
    server: Server, models: dict[str, dict[str, Any]], name: str
) -> None:
    images = [picture(seed) for seed in range(3)]
    files = []
    for index, image in enumerate(images):
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(("files", (f"{index}.png", file.getvalue())))
    with server.http() as http:
        reply = http.post("/v1/classify", files=files, params={"model": name, "top_k": 10}).json()
    batch = np.concatenate([tensor(image, models[name]["preprocessing"]) for image in images])
    members = [
        ort.InferenceSession(
            REPOSITORY / f"{name}_member{index}/1/model.onnx", providers=["CPUExecutionProvider"]
        )
        for index in range(ENSEMBLES[name])
    ]
    expected = np.mean([member.run(None, {"images": batch})[0] for member in members], axis=0)
    answered = [
        [p["logit"] for p in sorted(result["predictions"], key=lambda p: p["class_id"])]
        for result in reply["results"]
    ]
    assert np.allclose(answered, expected, atol=1e-4)
    assert not reply["degraded"]
    assert all(member["used"] for member in reply["members"])
    assert 0 < reply["overlap"] <= ENSEMBLES[name]


def test_the_repository_is_small_enough_to_commit() -> None:
    assert sum(file.stat().st_size for file in REPOSITORY.rglob("*") if file.is_file()) < 60_000_000
