import json

import pytest
from typer.testing import CliRunner

from coserve_cli.main import app
from coserve_training.networks.shake_shake import ShakeShakeConfig
from coserve_training.networks.wide_resnet import ImageNetWideResNetConfig


def test_examples_of_both_kinds_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    two = (ShakeShakeConfig, ImageNetWideResNetConfig)
    monkeypatch.setattr("coserve_training.networks.families", lambda: two)
    shown = CliRunner().invoke(app, ["networks"])
    assert shown.exit_code == 0
    assert [" ".join(line.split()) for line in shown.stdout.splitlines()] == [
        "network classes pixels parameters multiply-adds",
        "shake_resnet26_2x96d 10 32 26.193 M 3.7828 G",
        "wide_resnet50_2 1000 224 69.011 M 12.8011 G",
        "wide_resnet50_3 1000 224 134.976 M 23.8288 G",
    ]


def test_networks_for_a_data_set_as_json() -> None:
    rows = json.loads(CliRunner().invoke(app, ["networks", "--dataset", "cifar100", "--json"]).stdout)
    assert {(row["classes"], row["image_size"]) for row in rows} == {(100, 32)}
    counts = {row["network"]: (row["parameters"], row["multiply_adds"]) for row in rows}
    assert counts["wide_resnet28_10"] == (36_539_124, pytest.approx(5.2489e9, abs=1e5))
    assert counts.keys() > {
        "se_resnet164",
        "resnext29_8x64d",
        "densenet190",
        "pyramidnet272",
        "efficientnet_b0",
    }
    assert "resnet50" not in counts
