import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from coserve_training.config import TrainConfig
from coserve_training.errors import ConfigError, NetworkError
from coserve_training.networks.densenet import DenseNetConfig
from coserve_training.recipes import with_recipe


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(data=("photographs",), network="resnet110", split=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"epochs": "many"}, "epochs must be a valid integer"),
        ({"seed": 2**32}, "seed must be at most 4294967295, not 4294967296"),
        ({"batch_size": 1}, "batch_size must be at least 2, not 1"),
        ({"image_size": 4}, "image_size must be at least 8, not 4"),
        ({"learning_rate": -0.1}, "learning_rate must be at least 0, not -0.1"),
        ({"learning_rate": math.nan}, "learning_rate must be less than inf, not nan"),
        ({"learning_rate": math.inf}, "learning_rate must be less than inf, not inf"),
        ({"momentum": 1.0}, "momentum must be less than 1, not 1.0"),
        ({"start_size": 4}, "start_size must be at least 8, not 4"),
        ({"start_size": 64}, "start_size must be at most image_size (32), not 64"),
        ({"cutout": 33}, "cutout must be at most image_size (32), not 33"),
        ({"precision": "int4"}, "precision must be 'auto', 'fp32', 'bf16' or 'fp16', not int4"),
        ({"policy": "autoaugment"}, "policy must be 'none', 'autoaugment-cifar10'"),
        ({"policy_magnitude": 11}, "policy_magnitude must be at most 10, not 11"),
        ({"erasing_area": (0.2, 1.5)}, "erasing_area must be at most 1, not 1.5"),
        ({"erasing_area": (0.2, 0.1)}, "erasing_area must have the smaller number first, not 0.2 0.1"),
        ({"erasing_area": (0.2,)}, "erasing_area"),
        ({"erasing_ratio": (0, 1)}, "erasing_ratio must be greater than 0, not 0"),
        ({"erasing_ratio": (2, 1)}, "erasing_ratio must have the smaller number first, not 2 1"),
        ({"data": ()}, "data: at least one folder"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0, not -1"),
        ({"decay_rate": 0}, "decay_rate must be greater than 0, not 0"),
        ({"drop_path": 1}, "drop_path must be less than 1, not 1"),
        ({"crop_area": (0.5, 0.1)}, "crop_area must have the smaller number first, not 0.5 0.1"),
        ({"evaluation_scale": 0.9}, "evaluation_scale must be at least 1, not 0.9"),
        ({"interpolation": "nearest"}, "interpolation must be 'bilinear' or 'bicubic', not nearest"),
        ({"padding": "reflect", "crop": "none"}, "padding reflect needs crop padded, not none"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std must be given together"),
        ({"mean": (0.5,) * 3, "std": (0.2, 0.2, 0)}, "std must be greater than 0, not 0"),
        ({"mean": (125.3, 123, 113.9), "std": (63, 62.1, 66.7)}, "mean must be at most 1, not 125.3"),
        ({"mean": (0.5,) * 3, "std": (63, 62.1, 66.7)}, "std must be at most 1, not 63"),
    ],
)
def test_values_out_of_range_are_named(config: TrainConfig, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(config, **change)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_an_impossible_split_is_refused_when_the_configuration_is_made(config: TrainConfig) -> None:
    with pytest.raises(NetworkError, match="split must be one of"):
        replace(config, split=5)


def test_only_families_that_can_train_in_less_memory(config: TrainConfig) -> None:
    dense = replace(config, network="densenet100_12", memory_efficient=True)
    assert dense.member_network() == DenseNetConfig(100, 8, memory_efficient=True)
    with pytest.raises(
        NetworkError, match=r"^memory_efficient: resnet110 has no such mode, only densenet… has$"
    ):
        replace(config, memory_efficient=True)


def test_a_configuration_survives_json(config: TrainConfig) -> None:
    assert TrainConfig.from_json(json.loads(json.dumps(asdict(config)))) == config
    with pytest.raises(ConfigError, match="unknown configuration momentun"):
        TrainConfig.from_json({"data": ["x"], "network": "resnet110", "momentun": 0.9})


def test_resolution_grows_to_the_full_size(config: TrainConfig) -> None:
    growing = replace(config, epochs=8, start_size=16)
    assert [growing.size_at(epoch) for epoch in range(8)] == [16, 20, 24, 28, 32, 32, 32, 32]
    assert replace(growing, epochs=1).size_at(0) == 32
    assert {replace(growing, start_size=None).size_at(epoch) for epoch in range(8)} == {32}


def test_weight_decay_is_divided_by_equation_6_on_request(config: TrainConfig) -> None:
    decays = [
        replace(config, split=split, weight_decay=1e-4, divide_weight_decay=True).member_weight_decay
        for split in (1, 2, 4)
    ]
    assert decays == pytest.approx([1e-4, 6.0653e-5, 4.7237e-5], rel=1e-4)
    assert replace(config, weight_decay=1e-4).member_weight_decay == 1e-4


def test_options_override_a_recipe() -> None:
    assert with_recipe("cifar", {"network": "resnet110", "weight_decay": 3.0})["weight_decay"] == 3


def test_a_shorter_run_has_shorter_warm_ups() -> None:
    values = with_recipe("imagenet", {"network": "resnet50", "epochs": 12})
    assert (values["warmup_epochs"], values["co_training_warmup_epochs"]) == (0.5, 6)
    assert values["weight_decay"] == 5e-5
    kept = with_recipe("imagenet", {"network": "resnet50", "epochs": 12, "warmup_epochs": 3})
    assert kept["warmup_epochs"] == 3


def test_a_copied_recipe_is_read_and_a_broken_one_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('epochs = 3\nflip = false\n[[where]]\nnetwork = ["resnet*"]\nepochs = 4\n')
    assert with_recipe(str(file), {"network": "resnet110"}) == {
        "epochs": 4,
        "flip": False,
        "network": "resnet110",
    }
    file.write_text("epochs = \n")
    with pytest.raises(ConfigError, match=r"mine\.toml: not valid TOML"):
        with_recipe(str(file), {})
    for content, message in (
        ("epoch = 3", "unknown configuration epoch; the nearest is epochs"),
        ("foo = 3", "unknown configuration foo"),
        ('epochs = "x"', "epochs must be a valid integer, not x"),
        ("epochs = 1.5", "epochs must be a valid integer, not 1.5"),
        ('[[where]]\nnetwork = ["resnet*"]\nseed = -1', "seed must be at least 0, not -1"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError) as refused:
            with_recipe(str(file), {"network": "resnet110", "epochs": 3})
        assert str(refused.value) == f"recipe {file}: {message}"
    with pytest.raises(ConfigError, match="No such file"):
        with_recipe(str(tmp_path / "none.toml"), {})
    with pytest.raises(
        ConfigError, match="unknown recipe 'cifra'; choose one of cifar, cifar-fast, cifar-long"
    ):
        with_recipe("cifra", {})
