"""Export new networks in every precision, with the logits of today's ONNX Runtime.

python tests/compat/make_networks.py FOLDER
OLD/python tests/compat/check_onnxruntime.py FOLDER/repository FOLDER/logits.json
"""

import sys
from pathlib import Path

import numpy as np
import torch
from check_onnxruntime import record
from PIL import Image

from coserve_export import Int8
from coserve_export.trained import export_networks
from coserve_training.networks import member_network
from coserve_training.runs.folder import Run

SIZE = 32
LABELS = ["blue", "green", "red"]


def make_run() -> Run:
    """Return two small networks whose batch norms are random, as if trained."""
    torch.manual_seed(0)
    members = []
    for _ in range(2):
        member = member_network("wide_resnet10_1", 2).build(len(LABELS))
        state = member.state_dict()
        for name, value in state.items():
            if value.is_floating_point() and value.ndim == 1:
                state[name] = value + torch.rand(value.shape)
        member.load_state_dict(state)
        members.append(member.eval())
    preprocessing = {
        "height": SIZE,
        "width": SIZE,
        "resize_size": SIZE,
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    samples = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    return Run(members, LABELS, preprocessing, {"network": "tiny", "split": 2}, samples)


def make_images(folder: Path) -> Path:
    """Write images to calibrate int8 on."""
    random = np.random.default_rng(0)
    for index, label in enumerate(LABELS):
        (folder / "train" / label).mkdir(parents=True, exist_ok=True)
        for number in range(20):
            pixels = random.integers(0, 256, (SIZE, SIZE, 3)) // [1 + 3 * (index == i) for i in range(3)]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "train" / label / f"{number}.png")
    return folder


def main(folder: Path) -> None:
    """Write `repository/` and `logits.json` into a folder."""
    run = make_run()
    repository = folder / "repository"
    for name in ("fp32", "fp16"):
        export_networks(run, repository, name=name, precision=name, overwrite=True)
    int8 = Int8(make_images(folder / "images"), calibration_images=30)
    export_networks(run, repository, name="int8", int8=int8, overwrite=True)
    record(repository, folder / "logits.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
