"""The Helm chart as Helm itself renders it."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".cluster"
"""Where `make .cluster/installed` installs Helm and the schemas."""
CHART = ROOT / "deploy/helm/coserve"
NAMESPACE = "vision"
RELEASE = "photos"
NAME = "photos-coserve"

_RENDER = """
import json, sys
sys.path.append(sys.argv[1])
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError
results = []
with Chart.load(sys.argv[2]) as chart:
    for values in json.load(sys.stdin):
        try:
            results.append(chart.render(values, name=sys.argv[3], namespace=sys.argv[4]))
        except HelmError as error:
            results.append(str(error))
        else:
            report = lint(sys.argv[2], values, strict=True)
            results[-1]["lint"] = [one["error"] for one in report["messages"]] + report["errors"]
json.dump(results, sys.stdout)
"""
"""Run in a process of its own, since Helm's library starts Go's runtime in it."""


class Rendered:
    """The objects that Helm makes of some values."""

    def __init__(self, files: dict[str, Any]) -> None:
        self.notes: str = next(text for path, text in files.items() if path.endswith("NOTES.txt"))
        self.findings: list[str] = files.pop("lint")
        texts = [text for path, text in files.items() if path.endswith(".yaml")]
        self.objects: list[dict[str, Any]] = [
            one for text in texts for one in yaml.safe_load_all(text) if one
        ]

    def __getitem__(self, key: str | tuple[str, str]) -> dict[str, Any]:
        """Return the object of a kind, and of a name if there are several."""
        kind, name = (key, None) if isinstance(key, str) else key
        (found,) = (
            one for one in self.objects if one["kind"] == kind and name in (None, one["metadata"]["name"])
        )
        return found

    def kinds(self) -> list[tuple[str, str]]:
        """Return the kind and name of every object, sorted."""
        return sorted((one["kind"], one["metadata"]["name"]) for one in self.objects)

    @property
    def pod(self) -> dict[str, Any]:
        """The gateway's pod."""
        deployments = [one for one in self.objects if one["kind"] == "Deployment"]
        (spec,) = (one["spec"] for one in deployments if not one["metadata"]["name"].endswith("-triton"))
        return spec["template"]["spec"]  # type: ignore[no-any-return]

    @property
    def gateway(self) -> dict[str, Any]:
        """The gateway's container."""
        (container,) = self.pod["containers"]
        return container  # type: ignore[no-any-return]

    @property
    def variables(self) -> dict[str, str]:
        """The gateway's environment."""
        pairs = [(one["name"], one.get("value", "")) for one in self.gateway["env"]]
        assert len(dict(pairs)) == len(pairs), "a variable is set twice"
        return dict(pairs)


def render(*cases: dict[str, Any]) -> list[Rendered]:
    """Render the chart with each of some values."""
    results = _run(cases)
    assert not [text for text in results if isinstance(text, str)]
    return [Rendered(files) for files in results]


def refusals(*cases: dict[str, Any]) -> list[str]:
    """Return Helm's error for each of some values, which it must refuse."""
    results = _run(cases)
    assert all(isinstance(text, str) for text in results)
    return results


def _run(cases: Iterable[dict[str, Any]]) -> list[Any]:
    command = [sys.executable, "-c", _RENDER, TOOLS, CHART, RELEASE, NAMESPACE]
    done = subprocess.run(command, input=json.dumps([*cases]), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]
