import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from coserve_cli.main import EXTRAS, ROAD, VERBS, Modules, app

HEAVY = {"torch", "lightning", "fastapi", "onnxruntime", "onnx", "tritonclient", "httpx", "numpy", "PIL"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"Usage: coserve {verb}" in result.stdout


def test_lists_every_verb() -> None:
    result = CliRunner().invoke(app, ["-h"])
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    for verb, summary in VERBS.items():
        assert f" {verb} {summary}" in words
        described = str(Modules()[verb].help).split("\n\n")[0].replace("\n", " ")
        # The summary has to fit on two lines; the description may say more.
        assert described.split()[:3] == summary.split()[:3]


def test_without_a_command_the_road_is_shown() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    road = re.findall(r"^  coserve (\w+)", result.stdout, re.MULTILINE)
    assert road == ["train", "evaluate", "export", "serve", "classify"]
    assert "coserve --help" in result.stdout


@pytest.mark.parametrize("line", re.findall(r"^  coserve (.+?)(?: +#.*)?$", ROAD, re.MULTILINE))
def test_the_road_s_options_exist(line: str) -> None:
    verb, *arguments = line.split()
    with pytest.raises(SystemExit) as ended:
        app([verb, *arguments, "--help"])
    assert ended.value.code == 0


@pytest.mark.parametrize("arguments", [["export", "run", "--repository", ""], ["serve", "--repository="]])
def test_an_empty_argument_is_refused(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "an argument is empty: is a variable not set?" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has it")
@pytest.mark.parametrize("arguments", [["--help"], ["keys", "create", "lab", "--file", "keys"]])
def test_output_that_cannot_be_written_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    command = [Path(sys.executable).parent / "coserve", *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"
    assert not (tmp_path / "keys").exists() or "lab" not in (tmp_path / "keys").read_text()


def test_a_misspelt_verb_gets_suggestions() -> None:
    result = CliRunner().invoke(app, ["tran"])
    assert result.exit_code == 2
    assert "Did you mean 'train', 'triton'?" in result.stderr


def test_the_list_of_verbs_imports_none_of_them() -> None:
    script = (
        "import sys\n"
        "from coserve_cli.main import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print('imported:', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = set(done.stdout.rpartition("imported: ")[2].split())
    assert not modules & {f"coserve_cli.{verb}" for verb in VERBS}
    assert "rich" not in modules


def test_help_imports_no_component() -> None:
    """One process prints every help in turn: the first one that imports a library is named."""
    groups = (["bench", "http"], ["bench", "perf-analyzer"], ["bench", "speedup"], ["config", "show"])
    commands = [[], ["keys", "create"], *groups, *([verb] for verb in VERBS)]
    script = (
        "import sys\n"
        "from coserve_cli.main import app\n"
        f"for command in {commands}:\n"
        "    app([*command, '--help'], standalone_mode=False)\n"
        f"    heavy = {HEAVY} & sys.modules.keys()\n"
        "    assert not heavy, (command, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(commands)


@pytest.mark.parametrize(
    ("library", "arguments", "extras"),
    [
        ("torch", ["divide", "wide_resnet10_4", "--split", "2"], "train"),
        ("httpx", ["classify", "cat.jpg"], "client"),
        ("onnx", ["bench", "speedup", "--network", "wide_resnet10_4"], "server,export,bench"),
    ],
)
def test_a_verb_that_lacks_a_library_names_the_extra(library: str, arguments: list[str], extras: str) -> None:
    script = (
        f"import sys\nsys.modules[{library!r}] = None\nfrom coserve_cli.main import app\napp({arguments})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    wanted = f"needs {library}, which is not installed: pip install 'coserve[{extras}]'"
    assert done.stderr == f"error: coserve {arguments[0]} {wanted}\n"


def test_every_verb_knows_its_extras() -> None:
    extras = {"train", "export", "server", "client", "triton", "bench"}
    assert set(EXTRAS) == set(VERBS) - {"doctor"}
    assert {extra for names in EXTRAS.values() for extra in names.split(",")} == extras


def commands() -> Iterator[list[str]]:
    """Yield every command with its group."""
    for verb in VERBS:
        yield [verb]
        yield from ([verb, name] for name in getattr(Modules()[verb], "commands", ()))


@pytest.mark.parametrize("arguments", [[], *commands()], ids=" ".join)
def test_help_fits_80_columns_and_cuts_no_name(arguments: list[str]) -> None:
    shown = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "80"}).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "..." not in shown.partition("\n")[2]
    assert not re.search(r"<[a-zA-Z]+(\[|>|\|| range)|\{", shown.replace("<class>", "")), "a name of Typer's"
    command = get_command(app)
    for name in arguments:
        command = command.commands[name]
    for parameter in command.params:
        if parameter.param_type_name == "option":
            for name in (*parameter.opts, *parameter.secondary_opts):
                assert re.search(rf"{name}(?![\w-])", shown), name


def test_options_of_training_are_grouped() -> None:
    shown = CliRunner().invoke(app, ["train", "--help"]).stdout
    assert shown.index("\nOptions:\n") < shown.index("--output ") < shown.index("\nAugmentation:\n")
    assert shown.index("\nAugmentation:\n") < shown.index("--policy ")
    assert "autoaugment-svhn," in shown
