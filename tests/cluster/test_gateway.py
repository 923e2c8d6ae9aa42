"""What the chart tells the gateway, beside what the gateway has: settings, paths, times."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from coserve_server.settings import Settings, load_settings
from tests.cluster.cases import CASES, MUTUAL, rendered
from tests.cluster.chart import CHART, NAME, ROOT, TOOLS, refusals, render
from tests.integration.conftest import Serve, serve
from tests.server.onnx_repository import write_repository

__all__ = ["serve"]
pytestmark = pytest.mark.skipif(not (TOOLS / "helm_python").exists(), reason="`make test` fetches Helm")

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
OTHER_VARIABLES = {"COSERVE_HEALTHCHECK_CERTIFICATE", "COSERVE_HEALTHCHECK_KEY"}
"""Of the image's health check."""


@pytest.mark.parametrize("name", CASES)
def test_variables_are_settings_with_usable_values(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable, value in rendered()[name].variables.items():
        if variable not in OTHER_VARIABLES:
            assert variable.removeprefix("COSERVE_").lower() in Settings.model_fields
            value = value.replace("/run/coserve", str(tmp_path))
            if value.startswith(str(tmp_path)):
                Path(value).parent.mkdir(exist_ok=True)
                Path(value).touch()
            if value:
                monkeypatch.setenv(variable, value)
    # The image's own.
    monkeypatch.setenv("COSERVE_HOST", "0.0.0.0")
    assert "COSERVE_HOST=0.0.0.0" in (ROOT / "server/Dockerfile").read_text()
    settings = load_settings()
    assert settings.drain_delay_ms == 10_000
    assert (settings.repository is None) == (settings.engine == "triton")


def test_settings_are_passed_on_as_the_server_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in rendered()["settings"].variables.items():
        if value:
            monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert settings.max_body_bytes == 33554432
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.gpus == (0, 1)
    assert settings.access_log is False


def test_settings_of_the_chart_s_own_cannot_be_set_twice() -> None:
    own = {
        variable.removeprefix("COSERVE_").lower()
        for case in rendered().values()
        for variable in case.variables
    }
    own -= {
        *VALUES["settings"],
        *CASES["settings"]["settings"],
        "triton_token",
        "healthcheck_certificate",
        "healthcheck_key",
    }
    own |= {"host", "port"}
    allowed = SCHEMA["properties"]["settings"]["propertyNames"]["enum"]
    assert set(allowed) == set(Settings.model_fields) - own
    errors = refusals(*({"settings": {name: "x"}} for name in sorted(own)))
    for name, error in zip(sorted(own), errors, strict=True):
        assert f"invalid propertyName '{name}'" in error


@pytest.mark.parametrize(("drain_ms", "deadline_ms"), [(10_000, None), (0, 500), (5000, 60_001)])
def test_the_grace_period_covers_drain_deadline_and_exit(drain_ms: int, deadline_ms: int | None) -> None:
    settings = {} if deadline_ms is None else {"deadline_ms": deadline_ms}
    (case,) = render({"drainDelayMs": drain_ms, "settings": settings})
    # docs/guides/serving/serve.md, "Graceful shutdown": two seconds more than the deadline, and two to exit.
    needed = drain_ms / 1000 + (deadline_ms or Settings.model_fields["deadline_ms"].default) / 1000 + 2 + 2
    assert needed < case.pod["terminationGracePeriodSeconds"] <= needed + 2


@pytest.fixture(scope="module")
def paths(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Ask a real gateway for every path that the charts' probes and monitors name; return the statuses."""
    server = serve(write_repository(tmp_path_factory.mktemp("models") / "repository"))
    named = {"/metrics"}
    for case in rendered().values():
        named |= {
            case.gateway[probe]["httpGet"]["path"] for probe in PROBES if "httpGet" in case.gateway[probe]
        }
        named |= {
            case.gateway[probe]["exec"]["command"][-1] for probe in PROBES if "exec" in case.gateway[probe]
        }
    with server.http() as http:
        return {path: http.get(path).status_code for path in named}


def test_the_probes_ask_for_paths_that_the_gateway_has(paths: dict[str, int]) -> None:
    assert set(paths.values()) == {200}
    assert {"/healthz", "/readyz", "/metrics"} <= set(paths)


def test_probes_speak_the_gateway_s_protocol() -> None:
    for probe in PROBES:
        assert rendered()["default"].gateway[probe]["httpGet"].get("scheme", "HTTP") == "HTTP"
        assert rendered()["tls"].gateway[probe]["httpGet"]["scheme"] == "HTTPS"
        command = rendered()["mutual tls"].gateway[probe]["exec"]["command"]
        assert command[:2] == ["python", "/opt/coserve/healthcheck.py"]
    assert "COPY server/healthcheck.py /opt/coserve/" in (ROOT / "server/Dockerfile").read_text()


def test_a_lost_engine_does_not_restart_the_pod() -> None:
    gateway = rendered()["triton"].gateway
    assert gateway["livenessProbe"]["httpGet"]["path"] != gateway["readinessProbe"]["httpGet"]["path"]


def test_secrets_are_files_that_follow_their_renewal() -> None:
    case = rendered()["mutual tls"]
    mounts = {mount["name"]: mount for mount in case.gateway["volumeMounts"]}
    secrets = {one["name"]: one["secret"] for one in case.pod["volumes"] if "secret" in one}
    assert {name: secret["secretName"] for name, secret in secrets.items()} == {
        "keys": "keys",
        "tls": "tls",
        "authorities": "clients",
        "probe": "probe",
    }
    # A file mounted by subPath would stay as it was.
    assert all("subPath" not in mounts[name] for name in secrets)
    assert all(secret["defaultMode"] == 0o440 for secret in secrets.values())
    folders = {mounts[name]["mountPath"] for name in secrets}
    files = [text for text in case.variables.values() if text.startswith("/run/coserve/")]
    assert {text.rpartition("/")[0] for text in files} == folders


@pytest.mark.parametrize(
    ("name", "anonymous"),
    [("default", True), ("keys", False), ("mutual tls", False), ("public", True), ("route", False)],
)
def test_anyone_is_let_in_only_within_the_cluster_or_on_purpose(name: str, anonymous: bool) -> None:
    case = rendered()[name]
    assert ("COSERVE_ALLOW_PUBLIC" in case.variables) is anonymous
    assert ("No key is needed" in case.notes) is anonymous


TRITON = {"triton": {"enabled": True}}
KEYS = {"auth": {"apiKeys": {"secret": "x"}}}
ROUTE = {"enabled": True, "parentRefs": [{"name": "x"}]}
NOT_TOGETHER: dict[str, tuple[dict[str, Any], str]] = {
    "probe without clients' authorities": ({"tls": {"probeSecret": "x"}}, "set tls.clientAuthorities.secret"),
    "certificates and anyone": ({"auth": {"allowAnonymous": True}, "tls": MUTUAL}, "choose"),
    "name with a digit first": ({"fullnameOverride": "1st"}, "/fullnameOverride"),
    "name with a dot": ({"nameOverride": "a.b"}, "set fullnameOverride"),
    "one port twice": ({"service": {"port": 8001}, "grpc": {"enabled": True}}, "change one of them"),
    "no account": ({"serviceAccount": {"create": False, "annotations": {"a": "b"}}}, "annotate your own"),
    "no update": ({"triton": {"enabled": True, "maxSurge": "0%"}}, "lets no update begin"),
    "metrics behind a policy": (TRITON | {"serviceMonitor": {"enabled": True}}, "networkPolicy.metricsFrom"),
    "parent folder": ({"repository": {"folder": "a/../.."}}, "has no .."),
    "volume of the chart's": ({"volumes": [{"name": "tmp", "emptyDir": {}}]}, "rename it"),
    "variable of the chart's": ({"env": [{"name": "COSERVE_ENGINE", "value": "x"}]}, "remove it"),
    "variable of a probe's": ({"env": [{"name": "COSERVE_PORT", "value": "1"}]}, "remove it"),
    "variable in lower case": ({"env": [{"name": "coserve_engine", "value": "x"}]}, "remove it"),
    "variable of triton twice": ({"triton": {"env": [{"name": "A"}, {"name": "A"}]}}, "remove one"),
    "variable twice": ({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, "remove it"),
    "canary of nothing": ({"httpRoute": {"canary": {"weight": 1}}}, "another release"),
    "canary of its own": ({"httpRoute": {"canary": {"service": NAME}}}, "name another release's"),
    "no share": (KEYS | {"httpRoute": ROUTE | {"weight": 0}}, "are both 0"),
    "second backend": (KEYS | {"httpRoute": ROUTE | {"rule": {"backendRefs": []}}}, "'backendRefs'"),
    "fewer than none": (
        {"autoscaling": {"enabled": True, "minReplicas": 9, "maxReplicas": 3}},
        "minReplicas (9) is more than maxReplicas (3)",
    ),
    "part of nothing": ({"autoscaling": {"enabled": True}, "resources": {"limits": None}}, "limits.cpu"),
    "no tag": ({"repository": {"image": {"tag": ""}}}, "neither a tag nor a digest"),
    "tag in the name": ({"image": {"repository": "r/x:1"}}, "/image/repository"),
    "a setting misspelt": ({"settings": {"defualt_model": "x"}}, "invalid propertyName 'defualt_model'"),
    "a value deleted": ({"image": None}, "missing property 'image'"),
    "memory": ({"resources": {"limits": {"memory": "2 GB"}}}, "/resources/limits/memory"),
    "label of the chart's": ({"podLabels": {"app.kubernetes.io/component": "x"}}, "invalid propertyName"),
    "no client certificate for metrics": (
        {"tls": MUTUAL, "serviceMonitor": {"enabled": True, "tlsConfig": {"serverName": "x"}}},
        "tlsConfig.cert and keySecret",
    ),
    "load balancer": ({"service": {"type": "LoadBalancer"}}, "set auth.apiKeys.secret"),
    "route": ({"httpRoute": {"enabled": True, "parentRefs": [{"name": "x"}]}}, "set auth.apiKeys.secret"),
    "nobody": ({"auth": {"allowAnonymous": False}}, "nothing else says who may ask"),
    "both": ({"auth": {"allowAnonymous": True, "apiKeys": {"secret": "x"}}}, "choose"),
    "no parent": (
        {"httpRoute": {"enabled": True}, "auth": {"allowAnonymous": True}},
        "needs httpRoute.parentRefs",
    ),
    "no certificate": ({"tls": {"clientAuthorities": {"secret": "x"}}}, "needs tls.secret"),
    "no probe": ({"tls": MUTUAL | {"probeSecret": ""}}, "set tls.probeSecret"),
    "two tritons": ({"triton": {"enabled": True, "url": "a:8001"}}, "set one of them"),
    "no volume": ({"repository": {"source": "volume"}}, "set repository.volume"),
    "no bucket": ({"repository": {"source": "bucket"}}, "set repository.bucket.url"),
    "no prometheus": (
        {"autoscaling": {"enabled": True, "kind": "keda", "metric": "queue"}},
        "set prometheus.address",
    ),
    "requests of triton": (
        {"triton": {"enabled": True, "autoscaling": {"enabled": True, "metric": "requests"}}},
        "choose cpu or queue",
    ),
    "no key for metrics": (
        {"auth": {"apiKeys": {"secret": "x"}}, "serviceMonitor": {"enabled": True}},
        "set serviceMonitor.apiKey.secret",
    ),
    "no authority for metrics": (
        {"tls": {"secret": "x"}, "serviceMonitor": {"enabled": True}},
        "set serviceMonitor.tlsConfig",
    ),
    "misspelt": ({"replcas": 3}, "additional properties 'replcas' not allowed"),
    "no scaling to none": ({"autoscaling": {"minReplicas": 0}}, "/autoscaling/minReplicas"),
    "part of a core": ({"resources": {"limits": {"cpu": "1500m"}}}, "/resources/limits/cpu"),
    "a fraction of a core": ({"resources": {"limits": {"cpu": 1.5}}}, "/resources/limits/cpu"),
    "another store": (
        {"repository": {"source": "bucket", "bucket": {"url": "ftp://x"}}},
        "/repository/bucket/url",
    ),
}


def test_values_that_do_not_fit_together_are_refused_with_what_to_do() -> None:
    errors = refusals(*(values for values, _ in NOT_TOGETHER.values()))
    for (name, (_, words)), error in zip(NOT_TOGETHER.items(), errors, strict=True):
        assert words in error, name


def test_the_repository_is_where_the_gateway_looks() -> None:
    assert rendered()["default"].variables["COSERVE_REPOSITORY"] == "/repository"
    assert rendered()["volume"].variables["COSERVE_REPOSITORY"] == "/repository/models"
    for name in ("default", "volume", "image volume", "s3"):
        (mount,) = [one for one in rendered()[name].gateway["volumeMounts"] if one["name"] == "repository"]
        assert mount["mountPath"] == "/repository"
        assert mount["readOnly"] is True
    assert "initContainers" not in rendered()["volume"].pod
    assert "initContainers" not in rendered()["image volume"].pod


def test_the_notes_name_the_service_and_what_a_request_needs() -> None:
    notes = rendered()["mutual tls"].notes
    assert f"port-forward service/{NAME} 8000:8000" in notes
    line = 'curl --insecure --cert client.pem --key client.key -H "X-API-Key: $KEY" -F files=@photo.jpg https://127.0.0.1:8000/v1/classify'
    assert line in notes
    assert f"{NAME}.vision.svc:9000 for gRPC" in rendered()["grpc"].notes


def test_every_value_is_documented() -> None:
    described: int | None = None
    commented = False
    for line in (CHART / "values.yaml").read_text().splitlines():
        indent = len(line) - len(line.lstrip())
        if re.match(r" *\w+:( .+)?$", line):
            if commented:
                described = indent
            # What a comment describes includes what is below it.
            elif described is not None and indent <= described:
                described = None
            assert line.endswith(":") or described is not None, line
            commented = False
        elif line.lstrip().startswith("# -- "):
            commented = True
        assert len(line) <= 120
