from typing import Any

import numpy as np
import pytest
import torch

from coserve_export.authors.checkpoint import Checkpoint
from coserve_export.authors.recognise import Recognised, recognise
from coserve_export.authors.weights import build_member
from coserve_export.errors import NetworkError
from tests.export.authors.conftest import Case, filled_state, read_cases

CASES = read_cases()
SMALL = [
    ("wide_resnet16_8", 2), ("resnet110", 1), ("shake_resnet26_2x96d", 2), ("efficientnetb0", 2),
    ("se_resnet50", 1), ("resnexst50_4x16d", 1),
]  # fmt: skip
"""The others pass, too, in some minutes."""


def name_of(case: Case) -> str:
    return f"{case['arch']} {case['dataset']} S={case['split']}"


def settings_of(case: Case) -> dict[str, Any]:
    return {"dataset": case["dataset"], "crop_size": case["image_size"], "is_efficientnet_user_crop": 1}


def recognise_case(case: Case, members: list[dict[str, torch.Tensor]]) -> Recognised:
    return recognise(Checkpoint("file", members, case["arch"], None, None), settings_of(case))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_weight_has_its_place(case: Case) -> None:
    shapes = {key: torch.empty(shape, device="meta") for key, shape in case["keys"]}
    recognised = recognise_case(case, [shapes] * case["split"])
    classes = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}[case["dataset"]]
    learnable = sum(
        tensor.numel() for key, tensor in shapes.items() if not key.endswith(("mean", "var", "tracked"))
    )
    assert case["parameters"] == case["split"] * learnable
    build_member(recognised.member, classes, shapes, "it")
    with pytest.raises(
        NetworkError, match=r"^it does not hold the weights of .*: 1 left over \(x\.weight\)$"
    ):
        build_member(recognised.member, classes, shapes | {"x.weight": torch.zeros(1)}, "it")


@pytest.mark.parametrize("case", [c for c in CASES if (c["arch"], c["split"]) in SMALL], ids=name_of)
def test_logits_are_those_of_the_authors_code(case: Case) -> None:
    state = filled_state(case)
    members = [
        {key.split(".", 2)[2]: tensor for key, tensor in state.items() if key.startswith(f"models.{member}.")}
        for member in range(case["split"])
    ]
    recognised = recognise_case(case, members)
    classes = Checkpoint("file", members, None, None, None).classes
    size = case["image_size"]
    images = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    with torch.inference_mode():
        logits = np.stack(
            [
                build_member(recognised.member, classes, weights, "it")(torch.from_numpy(images)).numpy()
                for weights in members
            ]
        )
    difference = np.abs(logits[:, :, :6] - np.array(case["members_logits"])).max()
    assert difference < 1e-4 * case["absolute_maximum"]


def test_faults_are_counted_and_named() -> None:
    case = next(case for case in CASES if case["arch"] == "wide_resnet16_8")
    weights = {key: torch.empty(shape) for key, shape in case["keys"]}
    config = recognise_case(case, [weights] * 2).member
    del weights["layer0.0.weight"]
    weights["fc.bias"] = torch.empty(7)
    with pytest.raises(NetworkError) as raised:
        build_member(config, 100, weights, "it")
    assert str(raised.value) == (
        "it does not hold the weights of wide_resnet16_6: 1 missing (layer0.0.weight); "
        "1 of another shape (fc.bias is [7], not [100])"
    )
    for key in [key for key in weights if key.endswith("num_batches_tracked")]:
        del weights[key]
    with pytest.raises(NetworkError, match=r"1 missing \(layer0\.0\.weight\)"):
        build_member(config, 100, weights, "it")
