"""Run the commands of docs/start/your-photographs.md on a few small images and for one epoch."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coserve_cli.main import app
from tests.integration.conftest import Serve, serve

__all__ = ["serve"]

PAGE = (Path(__file__).parents[2] / "docs/start/your-photographs.md").read_text("utf-8")
BLOCKS = re.findall(r"^```\n\$ (coserve .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def shape(output: str) -> list[str]:
    """Return the words that begin lines: figures and names of the reader's classes differ."""
    # A list that continues on another line begins once.
    output = output.replace(",\n  ", ", ")
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("…")]
    return list(dict.fromkeys(re.sub(r"[\d.,%]+", "N", line.split()[0]) for line in lines))


def test_the_road_leads_from_photographs_to_an_answer(
    image_folder: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for ours, colour in (("cat", "red"), ("ship", "green"), ("truck", "blue")):
            shutil.copytree(image_folder / split / colour, f"photos/{split}/{ours}")
    for name in re.findall(r"photos/test/\w+/\d+\.jpg", PAGE.rpartition("$ coserve classify")[2]):
        shutil.copy("photos/test/cat/000.png", name)
    verbs = []
    for block in BLOCKS:
        command, _, shown = block.replace("\\\n", "").partition("\n")
        _, verb, *arguments = shlex.split(command)
        verbs.append(verb)
        if verb == "serve":
            assert arguments == ["--repository", "models"]
            server = serve(tmp_path / "models")
            monkeypatch.setenv("COSERVE_URL", server.url)
            assert shape("\n".join(server.announcement[1:])) == shape(shown.partition("\n")[2])
            continue
        if verb == "train":
            arguments[arguments.index("--epochs") + 1] = "1"
        done = CliRunner().invoke(app, [verb, *arguments])
        assert done.exit_code == 0, done.output
        if verb == "divide":
            assert done.stdout == shown
        else:
            assert set(shape(shown)) <= {*shape(done.stdout), *shape(done.stderr)}
    assert verbs == ["divide", "train", "evaluate", "export", "serve", "classify"]
