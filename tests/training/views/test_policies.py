from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Resampling

from coserve_training.config import TrainConfig
from coserve_training.views import randaugment
from coserve_training.views.autoaugment import SIGNED, AutoAugment, apply_operation
from coserve_training.views.operations import MOVES, RECOLOURS
from coserve_training.views.policies import Policy, make_policy
from coserve_training.views.randaugment import RandAugment

MEAN = (124, 116, 104)
DRAWS = 4000


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8))


def draw(policy: Policy, image: Image.Image) -> Counter[bytes]:
    random = np.random.default_rng(1)
    return Counter(policy(image, random).tobytes() for _ in range(DRAWS))


def check_frequencies(drawn: Counter[bytes], expected: Counter[bytes]) -> None:
    """Check that nothing else is drawn, and everything as often as expected, within 4.5 deviations."""
    assert sum(expected.values()) == pytest.approx(1)
    assert drawn.keys() <= expected.keys()
    for view, probability in expected.items():
        deviation = (probability * (1 - probability) / DRAWS) ** 0.5
        assert drawn[view] / DRAWS == pytest.approx(probability, abs=4.5 * deviation + 1 / DRAWS)


@pytest.mark.parametrize("name", ["cifar10", "svhn", "imagenet"])
def test_sub_policies_operations_and_signs_are_drawn_with_their_probabilities(
    config: TrainConfig, image: Image.Image, name: str
) -> None:
    policy = make_policy(replace(config, policy=f"autoaugment-{name}"), MEAN)  # type: ignore[arg-type]
    assert isinstance(policy, AutoAugment)
    expected = Counter[bytes]()
    for pair in policy.sub_policies:
        ways = [
            [
                (1 - probability, None),
                *((probability / len(signs), (operation, index, sign)) for sign in signs),
            ]
            for operation, probability, index in pair
            for signs in [(1, -1) if operation in SIGNED else (1,)]
        ]
        for (first, one), (second, two) in product(*ways):
            view = image
            for step in (one, two):
                view = view if step is None else apply_operation(view, *step)
            expected[view.tobytes()] += first * second / len(policy.sub_policies)  # type: ignore[assignment]
    check_frequencies(draw(policy, image), expected)


def test_signs_are_balanced() -> None:
    row = Image.fromarray(np.arange(0, 240, 10, dtype=np.uint8)[None].repeat(24, 0)).convert("RGB")
    autoaugment = AutoAugment("cifar10")
    autoaugment.sub_policies = ((("TranslateX", 1.0, 9), ("TranslateX", 0.0, 0)),)
    drawn = draw(autoaugment, row)
    assert len(drawn) == 2
    assert min(drawn.values()) / DRAWS == pytest.approx(0.5, abs=0.03)


# What timm's rand-m10 and rand-m4 do, in the words of its level functions.
MOVED = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45, "Rotate": 30}
RECOLOURED = {
    10: {"Posterize": 4, "Solarize": 256, "SolarizeAdd": 110, "Color": 1.9, "Contrast": 1.9,
         "Brightness": 1.9, "Sharpness": 1.9, "AutoContrast": 0, "Equalize": 0, "Invert": 0},
    4: {"Posterize": 1, "Solarize": 102, "SolarizeAdd": 44, "Color": 0.82, "Contrast": 0.82,
        "Brightness": 0.82, "Sharpness": 0.82, "AutoContrast": 0, "Equalize": 0, "Invert": 0},
}  # fmt: skip


@pytest.mark.parametrize("magnitude", [4, 10])
def test_randaugment_draws_every_operation_at_its_magnitude(
    config: TrainConfig, image: Image.Image, magnitude: int
) -> None:
    policy = make_policy(
        replace(
            config,
            policy="randaugment",
            policy_operations=1,
            policy_magnitude=magnitude,
            policy_magnitude_std=0,
        ),
        MEAN,
    )
    assert policy is not None
    views = [(RECOLOURS[name](image, amount), 1.0) for name, amount in RECOLOURED[magnitude].items()]
    for name, largest in MOVED.items():
        for sign, resample in product((1, -1), (Resampling.BILINEAR, Resampling.BICUBIC)):
            views.append((MOVES[name](image, sign * largest * magnitude / 10, resample, MEAN), 0.25))
    expected = Counter[bytes]({image.tobytes(): 0.5})  # type: ignore[dict-item]
    for view, share in views:
        expected[view.tobytes()] += share / 30  # type: ignore[assignment]
    check_frequencies(draw(policy, image), expected)


def test_randaugment_applies_as_many_operations_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randaugment, "OPERATIONS", ("SolarizeAdd",))
    drawn = draw(RandAugment(2, 1, 0, MEAN), Image.new("RGB", (1, 1)))
    check_frequencies(drawn, Counter({bytes(3): 0.25, bytes([11] * 3): 0.5, bytes([22] * 3): 0.25}))  # type: ignore[dict-item]


@pytest.mark.parametrize(("magnitude", "mean", "deviation"), [(5, 5.0, 0.5), (10, 9.8, 0.29)])
def test_randaugments_magnitude_varies_up_to_the_largest(
    monkeypatch: pytest.MonkeyPatch, magnitude: int, mean: float, deviation: float
) -> None:
    monkeypatch.setattr(randaugment, "OPERATIONS", ("SolarizeAdd",))
    drawn = draw(RandAugment(1, magnitude, 0.5, MEAN), Image.new("RGB", (1, 1)))
    magnitudes = np.array([10 * view[0] / 110 for view in drawn.elements() if view[0]])
    assert magnitudes.mean() == pytest.approx(mean, abs=0.1)
    assert magnitudes.std() == pytest.approx(deviation, abs=0.03)
    assert magnitudes.max() <= 10
