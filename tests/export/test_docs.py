"""Run the examples of docs/guides/using/python-export.md from top to bottom, on tiny networks."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs/guides/using/python-export.md"
LABELS = ["cat", "dog", "frog", "horse", "ship"]
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
DIRECTIONS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]], np.float32)
"""Each class has a colour, whose difference from the mean points in this direction."""


@pytest.fixture
def folder(
    tmp_path: Path, run_folder: Path, make_onnx: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Change to a folder with the files that the page names."""
    for run in ("photos", "better"):
        shutil.copytree(run_folder, tmp_path / "runs" / run)
    shutil.copy(tmp_path / "runs/better/last.ckpt", tmp_path / "runs/better/best.ckpt")
    make_onnx("first.onnx", weights=DIRECTIONS.T)
    make_onnx("second.onnx", weights=2 * DIRECTIONS.T)
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, direction in zip(LABELS, DIRECTIONS, strict=True):
            images = tmp_path / "photos" / split / label
            images.mkdir(parents=True)
            for index in range(10):
                colour = 255 * (MEAN + STD * direction) + random.normal(0, 5, (8, 8, 3))
                Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(images / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_run_and_print_what_the_page_shows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PAGE.read_text("utf-8")
    examples = list(re.finditer(r"^```python\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?", text, re.M | re.S))
    assert len(examples) == text.count("```python") == text.count("\n## ")
    for example in examples:
        code, output = example.groups()
        lines_before = text.count("\n", 0, example.start(1))
        exec(compile("\n" * lines_before + code, PAGE, "exec"), {})
        assert capsys.readouterr().out == (output or "")
    written = {path.name for path in (folder / "model_repository").iterdir()}
    assert {"photos", "photos_gpu", "animals", "animals_int8"} <= written
    config = (folder / "model_repository/photos_gpu_member1/config.pbtxt").read_text("utf-8")
    assert "gpus: 1" in config
