"""What a release says about itself: versions, citation, workflow."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.project import PROJECT

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.citation-file-format", ROOT / "CITATION.cff"),
        *(("vendor.github-workflows", path) for path in WORKFLOWS),
    ],
    ids=lambda value: Path(value).name,
)
def test_a_file_follows_its_schema(schema: str, file: Path) -> None:
    check = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", schema, file]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_names_the_same_version() -> None:
    version = PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    for name in (
        "docker-compose.yml",
        "docker-compose.gpu.yml",
        ".env.example",
        "deploy/kserve/servingruntime.yaml",
    ):
        images = re.findall(r"coserve-gateway(?:-gpu)?:([\w.]+)", (ROOT / name).read_text())
        assert set(images) == {version}, name
    chart = ROOT / "deploy/helm/coserve"
    described = yaml.safe_load((chart / "Chart.yaml").read_text())
    values = yaml.safe_load((chart / "values.yaml").read_text())
    assert {described["version"], described["appVersion"]} == {version}
    assert values["image"]["tag"] in ("", version)
    headings = re.findall(r"^## \[?([\w.]+)\]?", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == version


def test_the_workflow_runs_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    (path,) = WORKFLOWS
    workflow = path.read_text()
    called = set(re.findall(r"run: make ([a-z-]+)", workflow))
    assert called
    assert called <= targets
    dockerfiles = re.findall(r"file: (\S+)", workflow)
    assert dockerfiles
    assert all((ROOT / name).is_file() for name in dockerfiles)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_commits(path: Path) -> None:
    uses = re.findall(r"uses: (.*)", path.read_text())
    assert uses
    for action in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_to_files(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text())
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link
