"""Recipes that come with Coserve, against the paper's values.

`recipes.csv` was transcribed from the paper and the authors' code, not from the recipes. Unused fields are
empty.
"""

import csv
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from coserve_training.config import TrainConfig
from coserve_training.errors import ConfigError
from coserve_training.recipes import (
    FOLDER,
    recipe_hash,
    recipe_names,
    recognise_dataset,
    with_recipe,
)

ROWS = list(csv.DictReader(Path(__file__).with_name("recipes.csv").read_text().splitlines()))
SELECTED_BY = ("recipe", "data", "network", "splits")
UNUSED = {
    "start_size": None, "sampling": "shuffled", "initial": None, "cutout": 0, "accumulate": 1,
    "bias_learning_rate": 1, "ema": 0, "sync_batch_norm": False, "class_weights": "none", "dropout": None,
}  # fmt: skip


def read(text: str, value: object) -> object:
    """Return a field of the table, in the type of the value to compare with."""
    if text == "own":
        return None
    if isinstance(value, bool):
        return text == "yes"
    if isinstance(value, tuple):
        return tuple(map(float, text.split()))
    return text if isinstance(value, str) else float(text)


@pytest.mark.parametrize("row", ROWS, ids=["-".join(row[name] for name in SELECTED_BY) for row in ROWS])
def test_every_value_is_the_papers(row: dict[str, str]) -> None:
    for split in map(int, row["splits"].split()):
        options = {"data": (row["data"],), "network": row["network"], "split": split}
        config = TrainConfig.from_json(with_recipe(row["recipe"], options))
        used = {name: text for name, text in row.items() if name not in SELECTED_BY and text}
        for name, text in used.items():
            value = getattr(config, name)
            assert value == read(text, value), name
        for field in fields(TrainConfig):
            if field.name not in {*row, "data", "network", "split"}:
                expected = UNUSED.get(field.name, field.default)
                assert getattr(config, field.name) == expected, field.name


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_header_says_whose_recipe_it_is(recipe: str) -> None:
    header = (FOLDER / f"{recipe}.toml").read_text().splitlines()[0]
    papers = recipe in {row["recipe"] for row in ROWS}
    assert header.startswith("# The paper's recipe for " if papers else "# Coserve's own recipe for ")


def test_the_fast_recipe_trains_at_full_size_with_a_linear_schedule() -> None:
    given: dict[str, object] = {"data": ("cifar10",), "network": "wide_resnet16_4", "split": 2}
    changed = {
        "epochs": 24, "learning_rate": 0.2, "bias_learning_rate": 8, "warmup_epochs": 5.5,
        "schedule": "linear", "final_learning_rate": 0, "label_smoothing": 0.1, "cutout": 8,
        "co_training_warmup_epochs": 3.2, "decay_norms": False, "padding": "reflect",
    }  # fmt: skip
    assert TrainConfig.from_json(with_recipe("cifar-fast", given)) == TrainConfig.from_json(given | changed)


@pytest.mark.parametrize(("sources", "name"), [
    (["cifar10"], "cifar10"), (["cifar100"], "cifar100"), (["/d/cifar-10-python.tar.gz"], "cifar10"),
    (["/d/cifar-100-python"], "cifar100"), (["/d/cifar10-train.zip", "/d/cifar10-test.zip"], "cifar10"),
    (["cifar10.zip", "cifar100.zip"], None), (["/d/CIFAR100/train.zip"], "cifar100"),
    (["/cifar100/d/photos.zip"], None), (["svhn", "svhn_extra"], "svhn"), (["/d/train_32x32.mat"], "svhn"),
    (["ILSVRC2012_img_train.tar"], "imagenet"), (["tiny-imagenet"], None), (["imagenette2"], None),
    (["photos"], None), ([], None), (["cifar10", "photos"], None),
])  # fmt: skip
def test_data_sets_are_recognised_by_name(sources: list[str], name: str | None) -> None:
    assert recognise_dataset(sources) == name


def test_other_data_keep_their_own_mean_and_deviation_and_a_line_says_so() -> None:
    lines: list[str] = []
    values = with_recipe("cifar", {"data": ("photos",), "network": "resnet110"}, lines.append)
    assert "mean" not in values
    assert values["erasing_area"] == (0.125, 0.2)
    assert lines == [
        "recipe cifar: the data are not called cifar10 or cifar100, so its values for these are not used"
    ]


def test_a_line_says_what_data_were_recognised() -> None:
    lines: list[str] = []
    with_recipe("cifar", {"data": ("/cifar100-work/photos",), "network": "resnet110"}, lines.append)
    assert lines == ["recipe cifar: the data are called cifar100, so its values for these are used"]


def test_no_line_where_a_recipe_has_no_values_for_data_sets() -> None:
    lines: list[str] = []
    with_recipe("imagenet", {"data": ("photos",), "network": "resnet110"}, lines.append)
    assert lines == []


def test_all_conditions_of_a_where_table_must_hold(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    conditions = 'network = ["resnet*", "densenet40"]\ndataset = ["svhn"]\nsplit = [2, 4]\n'
    file.write_text(f"epochs = 1\n[[where]]\n{conditions}epochs = 3\n")

    def epochs(**options: object) -> object:
        return with_recipe(str(file), {"network": "resnet110", "data": ("svhn",), "split": 4} | options)[
            "epochs"
        ]

    assert epochs() == epochs(network="densenet40", split=2) == 3
    for other in ({"network": "densenet100"}, {"data": ("cifar10",)}, {"data": ("photos",)}, {"split": 1}):
        assert epochs(**other) == 1


def test_where_tables_apply_to_what_the_recipe_sets_itself(tmp_path: Path) -> None:
    """A resume gives the run's network, data and split as options, and must find the same values."""
    file = tmp_path / "mine.toml"
    for own, condition in (
        ("split = 2", "split = [2]"),
        ('network = "resnet110"', 'network = ["resnet*"]'),
        ('data = ["photos/svhn"]', 'dataset = ["svhn"]'),
    ):
        file.write_text(f"{own}\nepochs = 1\n[[where]]\n{condition}\nepochs = 3\n")
        begun = with_recipe(str(file), {})
        assert begun["epochs"] == 3
        named = {name: begun[name] for name in ("split", "network", "data") if name in begun}
        assert with_recipe(str(file), named) == begun
    other = with_recipe(str(file), {"data": ("cifar10",)})
    assert other["epochs"] == 1


@pytest.mark.parametrize(("table", "message"), [
    ("epochs = 3", "a [[where]] table needs network, dataset or split, each with a list"),
    ('network = "resnet110"', "a [[where]] table needs network, dataset or split, each with a list"),
    ('dataset = ["cifar-10"]', "to dataset 'cifar-10', only to cifar10, cifar100, svhn, imagenet"),
    ('dataset = [["svhn"]]', "to dataset ['svhn'], only to cifar10, cifar100, svhn, imagenet"),
    ('networks = ["resnet110"]', "unknown configuration networks; the nearest is network"),
])  # fmt: skip
def test_a_where_table_that_says_nothing_is_refused(table: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f"[[where]]\n{table}\n")
    with pytest.raises(ConfigError) as refused:
        with_recipe(str(file), {"network": "resnet110"})
    assert str(refused.value).startswith(f"recipe {file}: ")
    assert message in str(refused.value)


@pytest.mark.parametrize("content", [
    '[where]\nnetwork = ["resnet*"]\nepochs = 3', "where = 3", "where = [3]", 'where = "resnet*"',
])  # fmt: skip
def test_where_that_is_not_a_list_of_tables_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(content)
    with pytest.raises(ConfigError) as refused:
        with_recipe(str(file), {"network": "resnet110"})
    assert str(refused.value) == (
        f"recipe {file}: where must be tables, each headed [[where]] in double brackets"
    )


def test_numbers_in_quotes_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'epochs = "10"\nwarmup_epochs = "3"\n'
        '[[where]]\nnetwork = ["resnet*"]\nco_training_warmup_epochs = "4"\n'
    )
    values = with_recipe(str(file), {"network": "resnet110", "epochs": 5})
    assert (values["warmup_epochs"], values["co_training_warmup_epochs"]) == (1.5, 2)


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(data=("photographs",), network="densenet100_12", split=2, epochs=30)


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"data": ("elsewhere",)}, {"network": "resnet110"}, {"split": 4}, {"initial": "runs/other"},
    {"memory_efficient": True}, {"skip_corrupt": True}, {"erasing_area": (0.1, 0.2)}, {"decay_rate": 0.5},
    {"erasing_ratio": (0.9, 1.1)}, {"policy_magnitude": 3}, {"policy_magnitude_std": 1.0},
    {"policy_operations": 1}, {"crop_area": (0.2, 1.0)}, {"decay_epochs": 3}, {"warmup_epochs": 2},
    {"co_training_warmup_epochs": 4},
])  # fmt: skip
def test_a_hash_ignores_what_does_not_change_the_recipe(config: TrainConfig, change: dict[str, Any]) -> None:
    assert recipe_hash(replace(config, **change)) == recipe_hash(config)


@pytest.mark.parametrize(("used", "change"), [
    ({}, {"epochs": 31}), ({}, {"learning_rate": 0.2}), ({}, {"flip": False}), ({}, {"image_size": 40}),
    ({}, {"evaluation_scale": 1.15}), ({}, {"warmup_epochs": 3}), ({}, {"co_training_warmup_epochs": 3}),
    ({}, {"final_learning_rate": 0.0}), ({}, {"co_training_term": "kl"}), ({}, {"ema": 0.9}),
    ({}, {"own_views": False}),
    ({"erasing": 0.5}, {"erasing_area": (0.1, 0.2)}), ({"erasing": 0.5}, {"erasing_ratio": (0.9, 1.1)}),
    ({"policy": "randaugment"}, {"policy_magnitude": 3}), ({"crop": "resized"}, {"crop_area": (0.2, 1.0)}),
    ({"policy": "randaugment"}, {"policy_magnitude_std": 1.0}), ({"schedule": "step"}, {"decay_epochs": 3}),
    ({"policy": "randaugment"}, {"policy_operations": 1}), ({"schedule": "step"}, {"decay_rate": 0.5}),
])  # fmt: skip
def test_a_hash_tells_recipes_apart(
    config: TrainConfig, used: dict[str, Any], change: dict[str, Any]
) -> None:
    recipe = replace(config, **used)
    assert recipe_hash(replace(recipe, **change)) != recipe_hash(recipe)


def test_a_hash_survives_json_and_other_versions(config: TrainConfig) -> None:
    """Runs are compared by it, which other versions of Coserve may have written."""
    read = TrainConfig.from_json(json.loads(json.dumps(asdict(replace(config, crop_area=(0.2, 1))))))
    assert recipe_hash(read) == recipe_hash(config) == "7b4f1c8cb6e9"
