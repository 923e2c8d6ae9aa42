import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from coserve_export.authors.weights import layer_names
from coserve_training.networks import member_network

Case = dict[str, Any]


def read_cases() -> list[Case]:
    """Return what the authors' code gives: a member's keys, and logits of weights that `fill` makes.

    The first 25 are the project's reference, the others were made in the same way.
    """
    with gzip.open(Path(__file__).with_name("cases.json.gz")) as file:
        cases: list[Case] = json.load(file)
    return cases


def fill(key: str, shape: list[int]) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        values = np.zeros(shape)
    elif key.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif key.endswith("running_mean") or key.endswith("bias"):
        values = random.standard_normal(shape) * 0.1
    elif len(shape) == 1:
        values = random.uniform(0.5, 1.5, shape)
    else:
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return np.asarray(values, np.float32)


def filled_state(case: Case) -> dict[str, Tensor]:
    keys = [
        (f"models.{member}.{key}", shape) for member in range(case["split"]) for key, shape in case["keys"]
    ]
    return {key: torch.from_numpy(fill(key, shape)) for key, shape in keys}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a small classifier as the authors' training does; it returns the file."""

    def save_one(name: str = "model_best.pth.tar", **changes: Any) -> Path:
        torch.manual_seed(0)
        config = member_network("wide_resnet10_1", 2)
        state: dict[str, Tensor] = {}
        for member in range(2):
            network = config.build(10)
            torch.nn.init.normal_(network[-1][-1].weight)
            for prefix, layer in layer_names(config, network):
                for key, tensor in layer.state_dict().items():
                    state[f"module.models.{member}.{prefix}.{key}"] = tensor
        saved = {
            "epoch": 300,
            "arch": "wide_resnet10_1",
            "state_dict": state,
            "best_acc1": np.float64(81.5),
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []},
            "scaler": {"scale": 65536.0},
        }
        file = tmp_path / name
        torch.save({key: value for key, value in (saved | changes).items() if value is not None}, file)
        return file

    return save_one
