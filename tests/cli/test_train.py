"""The training verbs as a user runs them: output, errors, signals and exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from coserve_cli.main import app
from tests.training.untrained_run import write_run

COSERVE = str(Path(sys.executable).with_name("coserve"))


def coserve(*arguments: object) -> Result:
    """Run a command in this process: importing Lightning takes a process of its own seconds."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_divide_prints_json() -> None:
    result = coserve("divide", "wide_resnet28_10", "--split", 2, "--dataset", "cifar100", "--json")
    content = json.loads(result.stdout)
    assert content["network"] == "wide_resnet28_10"
    assert content["split"] == 2
    assert content["parameters"] == 2 * content["member_parameters"] == pytest.approx(35.8e6, rel=0.005)
    assert content["multiply_adds"] == 2 * content["member_multiply_adds"] == pytest.approx(5.16e9, rel=0.03)


def test_divide_prints_a_table() -> None:
    lines = coserve("divide", "resnet110", "--split", 4).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["resnet110", "resnet110_width8", "4"]
    assert "\x1b" not in "".join(lines)


def test_a_killed_run_is_resumed_and_evaluated(image_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = ["train", "--data", image_folder.name, "--network", "wide_resnet10_1", "--split", 2]
    command += ["--epochs", 4, "--batch-size", 30, "--output", output]
    with subprocess.Popen(
        [COSERVE, *map(str, command)], stdout=subprocess.PIPE, text=True, cwd=image_folder.parent
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("epoch 1/4")
        assert process.stdout.readline().startswith("epoch 2/4")
        process.send_signal(signal.SIGKILL)
    command[2] = image_folder
    refused = coserve(*command)
    assert refused.exit_code == 1
    assert refused.stderr == (
        f"error: {output} holds a run already; continue it with --resume, or choose another --output\n"
    )
    resumed = coserve("train", "--output", output, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert "epoch 4/4" in resumed.stdout
    assert "epoch 1/4" not in resumed.stdout
    assert "member 1" in resumed.stdout
    # The run records absolute paths of its data, so it can be evaluated from any folder.
    evaluated = coserve("evaluate", output, "--json")
    recorded = json.loads((output / "evaluation.json").read_text())
    scores = json.loads(evaluated.stdout)
    assert scores["ensemble"] == pytest.approx(recorded["ensemble"], abs=1e-5)


@pytest.mark.parametrize(("number", "whole_group"), [
    (signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True),
])  # fmt: skip
def test_a_stopped_training_prints_how_to_resume(
    number: signal.Signals, whole_group: bool, image_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = ["train", "--data", image_folder, "--network", "wide_resnet10_1", "--epochs", 500]
    command += ["--batch-size", 60, "--workers", 1, "--output", output]
    with subprocess.Popen(
        [COSERVE, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        (os.killpg if whole_group else os.kill)(process.pid, number)
        errors = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert errors.splitlines()[-1] == f"interrupted; resume with: coserve train --output {output} --resume"
    assert "Traceback" not in errors
    assert (output / "last.ckpt").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--data", "damaged", "--network", "wide_resnet10_1"],
     "1 of 150 images cannot be decoded: {data}/train/red/000.png"),
    (["--data", "absent", "--network", "wide_resnet10_1"], "absent: no such file or folder"),
    (["--data", "damaged", "--network", "resnet111"], "resnet111: depth must be 9n + 2"),
    (["--data", "damaged", "--network", "resnet110", "--split", 3],
     "split must be one of 1, 2, 4, 8, 16, not 3"),
    (["--data", "damaged", "--network", "alexnet"], "unknown network 'alexnet'"),
    (["--data", "damaged", "--network", "resnet20", "--epochs", 0], "epochs must be at least 1, not 0"),
    (["--data", "damaged", "--network", "resnet20", "--start-size", 64],
     "start_size must be at most image_size"),
    (["--data", "damaged", "--network", "wide_resnet10_1", "--split", 2, "--place-members"],
     "to place 2 members on a device each, devices × nodes must be 2, not 1"),
    (["--resume"], "not a run folder"),
])  # fmt: skip
def test_broken_input_ends_with_one_line_that_names_it(
    arguments: list[object], message: str, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(damaged.parent)
    result = coserve("train", "--output", "run", *arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert message.format(data=damaged) in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("run").exists()


@pytest.fixture(scope="module")
def damaged(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = Path(shutil.copytree(image_folder, tmp_path_factory.mktemp("data") / "damaged"))
    (data / "train/red/000.png").write_text("broken")
    return data


def test_images_that_cannot_be_decoded_suggest_an_option_of_this_command_alone(
    damaged: Path, tmp_path: Path
) -> None:
    hint = ", or leave them out with --skip-corrupt"
    arguments = ["--data", damaged, "--network", "wide_resnet10_1", "--output", tmp_path / "new"]
    result = coserve("train", *arguments)
    assert result.stderr.endswith(f"; replace them{hint}\n")
    data = Path(shutil.copytree(damaged, tmp_path / "data"))
    (data / "test/red/000.png").write_text("broken")
    run = write_run(tmp_path / "run", data)
    result = coserve("evaluate", run)
    assert result.stderr.endswith("; replace them\n"), result.output


def test_a_run_needs_data_and_a_network(tmp_path: Path) -> None:
    missing = coserve("train", "--output", tmp_path / "run")
    assert missing.exit_code == 2
    assert "give --data and --network, or --resume" in missing.stderr


def test_evaluating_another_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    result = coserve("evaluate", tmp_path)
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path}: not a run folder (it has no config.json)\n"


def test_an_output_that_cannot_be_written_is_one_line(image_folder: Path, tmp_path: Path) -> None:
    """In a process of its own, whose stderr holds what any library prints."""
    if os.geteuid() != 0:
        tmp_path.chmod(0o555)
    blocked = tmp_path / "file" / "run" if os.geteuid() == 0 else tmp_path / "run"
    if os.geteuid() == 0:
        (tmp_path / "file").write_text("in the way")
    command = ["train", "--data", image_folder, "--network", "wide_resnet10_1", "--batch-size", 30]
    command += ["--output", blocked]
    result = subprocess.run([COSERVE, *map(str, command)], capture_output=True, text=True, timeout=200)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert str(blocked) in result.stderr


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupt_suggests_to_resume_only_if_there_is_a_run(
    begun: bool, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a run"

    def interrupted(*_: object, **__: object) -> None:
        if begun:
            output.mkdir()
            (output / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("coserve_training.training_run.train", interrupted)
    command = ["train", "--data", str(image_folder), "--network", "resnet11", "--output", str(output)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 130
    hint = f"; resume with: coserve train --output '{output}' --resume"
    assert result.stderr == f"interrupted{hint if begun else ' before anything was written'}\n"


def test_the_run_to_start_from_is_recorded_by_its_absolute_path(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed in its first epoch is resumed from any folder."""
    write_run(tmp_path / "other", image_folder)
    monkeypatch.chdir(tmp_path)
    given: list[str | None] = []
    monkeypatch.setattr(
        "coserve_training.training_run.train", lambda config, *_, **__: given.append(config.initial)
    )
    result = coserve(
        "train", "--data", image_folder, "--network", "resnet11", "--initial", "other", "--output", "run"
    )
    assert result.exit_code == 0, result.output
    assert given == [str(tmp_path / "other")]


def test_a_resumed_run_does_not_ignore_a_recipe(image_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("epochs = 10\nwarmup_epochs = 5\nlearning_rate = 0.01")
    output = tmp_path / "run"
    command = ["train", "--data", image_folder, "--network", "wide_resnet10_1", "--batch-size", 30]
    command += ["--epochs", 1, "--workers", 0, "--output", output]
    assert coserve(*command, "--recipe", recipe).exit_code == 0
    again = coserve(*command, "--recipe", recipe, "--resume")
    assert again.exit_code == 0, again.stderr
    # The recipe's 10 epochs do not prolong the run.
    alone = ["train", "--output", output, "--workers", 0, "--resume", "--recipe"]
    assert coserve(*alone, recipe).stdout == again.stdout
    for other, message in (
        ("quick", f"error: {output} was started with start_size None, not 16; a resumed run keeps"),
        ("absent", "error: unknown recipe 'absent'; choose one of"),
    ):
        refused = coserve(*alone, other)
        assert refused.exit_code == 1
        assert refused.stderr.startswith(message)
    longer = coserve(*alone, recipe, "--epochs", 2)
    assert "epoch 2/2" in longer.stdout, longer.stderr
    assert coserve(*alone, recipe).exit_code == 0
