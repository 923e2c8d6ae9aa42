"""Checks of the container files that need no Docker engine."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from coserve_server.settings import Settings
from tests.project import PROJECT

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FILES = ("docker-compose.yml", "docker-compose.gpu.yml", "docker-compose.grpc.yml")
COMPOSE = {name: yaml.safe_load((ROOT / name).read_text()) for name in FILES}
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/coserve.json").read_text())
VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^}]*))?\}")
GPU_METRICS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}
"""Triton exports these only on GPUs (docs/user_guide/metrics.md of triton-inference-server/server)."""


def values(node: object) -> Iterator[object]:
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from values(child)
    else:
        yield node


def passed_on() -> set[str]:
    """Return the variables that are passed on to containers if they are set."""
    services = [service for file in COMPOSE.values() for service in file["services"].values()]
    return {name for one in services for name, value in one.get("environment", {}).items() if value is None}


def defaults() -> dict[str, str]:
    """Return the variables that the files substitute, and their defaults."""
    found: dict[str, str] = {}
    for value in values(list(COMPOSE.values())):
        for name, default in VARIABLE.findall(str(value)):
            assert found.setdefault(name, default) == default, f"{name} has two defaults"
    return found


def documented() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    pairs = [line.removeprefix("#").split("=", 1) for line in lines if re.match(r"#?[A-Z_]+=", line)]
    assert len(dict(pairs)) == len(pairs), "a variable is documented twice"
    return dict(pairs)


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


@pytest.mark.parametrize("name", FILES)
def test_a_file_follows_the_compose_specification(name: str) -> None:
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "program", [["docker", "compose"], ["docker-compose-v2"], ["docker-compose"]], ids=" ".join
)
@pytest.mark.parametrize("files", [FILES[:1], FILES], ids=["cpu", "gpu"])
def test_compose_reads_the_files(program: list[str], files: tuple[str, ...]) -> None:
    if not shutil.which(program[0]) or subprocess.run([*program, "version"], capture_output=True).returncode:
        pytest.skip(f"{' '.join(program)} is not installed")
    options = [option for name in files for option in ("--file", name)]
    options += [f"--profile={name}" for name in ("embedded", "observability", "bench")]
    done = subprocess.run([*program, *options, "config"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == set(COMPOSE[FILES[0]]["services"])


def test_the_dockerfiles_are_clean() -> None:
    command = [BIN / "hadolint", "server/Dockerfile", "tests/compose/stand_ins.Dockerfile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_variable_is_documented_with_its_default() -> None:
    known = documented()
    assert set(known) == set(defaults()) | passed_on()
    assert {name: known[name] for name in defaults()} == defaults()


def test_the_settings_that_are_passed_on_exist_and_have_the_documented_defaults() -> None:
    known = documented()
    health_check = {"COSERVE_HEALTHCHECK_CERTIFICATE", "COSERVE_HEALTHCHECK_KEY"}
    assert all(name in (ROOT / "server/healthcheck.py").read_text() for name in health_check)
    examples = {
        "COSERVE_API_KEYS_FILE",
        "COSERVE_TLS_CERTIFICATE",
        "COSERVE_TLS_KEY",
        "COSERVE_TLS_CLIENT_AUTHORITIES",
    }
    for variable in passed_on() - examples - health_check - {"CUDA_VISIBLE_DEVICES"}:
        field = Settings.model_fields[variable.removeprefix("COSERVE_").lower()]
        value = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        default = "" if value is None else str(value).lower().removesuffix(".0")
        assert known[variable] == default, variable


def test_ports_are_published_only_on_loopback() -> None:
    for service in COMPOSE[FILES[0]]["services"].values():
        for port in service.get("ports", []):
            assert VARIABLE.sub(r"\2", port).startswith("127.0.0.1:")


def test_everything_that_stays_up_has_a_health_check_and_no_privileges() -> None:
    for name, service in COMPOSE[FILES[0]]["services"].items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert name == "bench" or ("healthcheck" in service and service["restart"] == "unless-stopped")


def test_the_extras_of_images_are_the_package_s() -> None:
    extras = set(PROJECT["optional-dependencies"])
    arguments = [
        service.get("build", {}).get("args", {})
        for file in COMPOSE.values()
        for service in file["services"].values()
    ]
    named = {
        name for one in arguments for name in VARIABLE.sub(r"\2", one.get("EXTRAS", "")).split(",") if name
    }
    documented = re.findall(r"EXTRAS=([\w,]+)", (ROOT / "docs/guides/serving/deploy.md").read_text())
    assert documented
    assert named | {name for one in documented for name in one.split(",")} <= extras


def test_health_checks_ask_no_proxy() -> None:
    """Docker passes the proxies of its own configuration on to containers."""
    for service in COMPOSE[FILES[0]]["services"].values():
        test = service.get("healthcheck", {}).get("test", [])
        if "curl" in test:
            assert test[test.index("curl") + 1 :][:2] == ["--noproxy", "*"]
        elif "wget" in test:
            assert test[1 : test.index("wget")] == ["env", "-u", "http_proxy", "-u", "HTTP_PROXY"]


def test_images_are_pinned() -> None:
    for name, image in defaults().items():
        if name.endswith("_IMAGE"):
            assert re.search(r":v?\d+\.\d+", image), image


def test_every_file_names_the_same_triton_which_no_request_ends() -> None:
    files = ["docker-compose.yml", ".env.example", "docs/guides/serving/triton.md"]
    text = "".join((ROOT / name).read_text() for name in files)
    named = set(re.findall(r"nvcr\.io/nvidia/tritonserver:([\d.]+)-py3", text))
    chart = yaml.safe_load((ROOT / "deploy/helm/coserve/values.yaml").read_text())["triton"]["image"]["tag"]
    (release,) = named | {chart.removesuffix("-py3")}
    # CVE-2025-23310 and CVE-2025-23311.
    assert tuple(map(int, release.split("."))) >= (25, 7)


def test_the_build_context_has_only_the_image_s_files() -> None:
    dockerfile = (ROOT / "server/Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    sources = {source.split("/")[0] for line in copied for source in line.split()}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    allowed = {line[1:].split("/")[0] for line in ignored if line.startswith("!")}
    assert {"wheels" if "[" in source else source for source in sources} == allowed


def test_the_dashboard_is_provisioned() -> None:
    folder = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards/coserve.yml").read_text())["providers"]
    mounts = [volume.split(":") for volume in COMPOSE[FILES[0]]["services"]["grafana"]["volumes"]]
    assert ["./deploy/grafana/dashboards", provider["options"]["path"], "ro"] in mounts
    assert ["./deploy/grafana/provisioning", "/etc/grafana/provisioning", "ro"] in mounts
    used = {(d["type"], d["uid"]) for d in sources(DASHBOARD)}
    assert used == {(source["type"], source["uid"])}
    assert source["url"] == "http://prometheus:9090"


def sources(node: Any) -> Iterator[dict[str, str]]:
    if isinstance(node, dict):
        yield from ([node["datasource"]] if "datasource" in node else [])
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from sources(child)


def test_panels_lie_beside_one_another() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        taken = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        cells |= taken
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def names(expression: str) -> set[str]:
    """Return the names of the metrics in an expression, which must parse."""
    text = expression.replace("$__rate_interval", "1m")
    promql_parser.parse(text)
    return set(re.findall(r"\b(?:coserve|nv)_\w+", re.sub(r'"[^"]*"', "", text)))


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_metrics_that_are_exported(expression: str, exported: set[str]) -> None:
    assert names(expression)
    assert names(expression) <= exported | GPU_METRICS
