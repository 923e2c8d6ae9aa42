import json

import pytest
from typer.testing import CliRunner

from coserve_cli.main import app


def test_the_paper_s_figures_are_printed_beside_ours() -> None:
    shown = CliRunner().invoke(app, ["divide", "--table", "cifar10"])
    assert shown.exit_code == 0
    first = next(line for line in shown.stdout.splitlines() if line.startswith("shake_resnet26_2x96d"))
    assert " ".join(first.split()) == (
        "shake_resnet26_2x96d 1 32 26.193 26.2 -0.0% 3.7828 3.78 +0.1% 2.00 1800"
    )
    last = shown.stdout.splitlines()[-1]
    assert " ".join(last.split()) == "pyramidnet272 4 32 32.604 32.6 +0.0% 6.3327 - 1.29 1800"


def test_the_table_as_json() -> None:
    rows = json.loads(CliRunner().invoke(app, ["divide", "--table", "cifar10", "--json"]).stdout)
    assert rows[2] == {
        "network": "shake_resnet26_2x96d",
        "split": 4,
        "classes": 10,
        "image_size": 32,
        "parameters": 26250216,
        "paper_parameters": 26_300_000,
        "parameters_difference_percent": -0.19,
        "multiply_adds": 3819986432,
        "paper_multiply_adds": 3_820_000_000,
        "multiply_adds_difference_percent": -0.0,
        "paper_top1_error_percent": 1.69,
        "paper_epochs": 1800,
        "note": None,
    }
    assert rows[3]["paper_multiply_adds"] is None
    assert rows[3]["multiply_adds_difference_percent"] is None


def test_rows_that_need_one_have_a_note() -> None:
    shown = CliRunner().invoke(app, ["divide", "--table", "imagenet"]).stdout.splitlines()
    marked = [line.split()[0] for line in shown if line.endswith(("[1]", "[2]"))]
    assert marked == ["se_resnext101_64x4d", "se_resnext101_64x4d_narrow_stem"]
    assert [line[:4] for line in shown[-2:]] == ["[1] ", "[2] "]


@pytest.mark.parametrize("network", ["resnet9000002", "wide_resnet28_99999999999999999999999"])
def test_a_network_too_large_to_count_is_one_line(network: str) -> None:
    refused = CliRunner().invoke(app, ["divide", network])
    assert refused.exit_code == 1
    assert refused.stderr == f"error: {network}: the numbers in a network's name must be at most 2000\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a NETWORK, or --table for the paper's rows"),
        (["resnet110", "--table", "cifar10"], "leave out NETWORK"),
        (["--table", "cifar10", "--split", "2"], "leave out --split"),
        (["--table", "cifar10", "--dataset", "cifar10"], "leave out --dataset"),
        (["--image-size", "32", "--table", "cifar10"], "leave out --image-size"),
        (["resnet110", "--image-size", "1000000000000"], "less than or equal to 65536"),
    ],
)
def test_contradictory_arguments_are_named(arguments: list[str], message: str) -> None:
    refused = CliRunner().invoke(app, ["divide", *arguments], env={"COLUMNS": "120"})
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not refused.stdout
