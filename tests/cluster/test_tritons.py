"""The chart's tier of Tritons: its arguments with a real Triton, and who reaches it."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.cases import rendered
from tests.cluster.chart import NAME, TOOLS
from tests.integration.conftest import StartTriton, triton
from tests.server.onnx_repository import write_repository

__all__ = ["triton"]
pytestmark = pytest.mark.skipif(not (TOOLS / "helm_python").exists(), reason="`make test` fetches Helm")

TRITON = f"{NAME}-triton"


def labels(case: str, name: str) -> dict[str, str]:
    return rendered()[case]["Deployment", name]["spec"]["template"]["metadata"]["labels"]  # type: ignore[no-any-return]


def container(case: str) -> dict[str, Any]:
    (found,) = rendered()[case]["Deployment", TRITON]["spec"]["template"]["spec"]["containers"]
    return found  # type: ignore[no-any-return]


def test_only_gateways_and_who_reads_metrics_reach_it() -> None:
    spec = rendered()["triton"]["NetworkPolicy"]["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["podSelector"]["matchLabels"].items() <= labels("triton", TRITON).items()
    (rule,) = spec["ingress"]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"].items() <= labels("triton", NAME).items()
    assert rule["ports"] == [{"port": "grpc"}]
    _, metrics = rendered()["triton with gpus"]["NetworkPolicy"]["spec"]["ingress"]
    assert metrics["ports"] == [{"port": "metrics"}]


def test_its_service_is_within_the_cluster_and_what_gateways_call() -> None:
    service = rendered()["triton"]["Service", TRITON]["spec"]
    assert (service["type"], service["clusterIP"]) == ("ClusterIP", "None")
    ports = {port["name"]: port["port"] for port in service["ports"]}
    assert rendered()["triton"].variables["COSERVE_TRITON_URL"] == f"{TRITON}:{ports['grpc']}"
    assert "http" not in ports
    listening = {port["name"]: port["containerPort"] for port in container("triton")["ports"]}
    assert {port["targetPort"] for port in service["ports"]} < set(listening)


def test_the_grace_period_covers_what_it_takes_to_stop() -> None:
    pod = rendered()["triton"]["Deployment", TRITON]["spec"]["template"]["spec"]
    _, seconds = container("triton")["lifecycle"]["preStop"]["exec"]["command"]
    (exiting,) = [text for text in container("triton")["args"] if text.startswith("--exit-timeout-secs=")]
    # docs/guides/serving/serve.md, "Several servers": a name server's cache, and the gateways' interval.
    assert float(seconds) >= 30 + 5
    assert pod["terminationGracePeriodSeconds"] >= float(seconds) + float(exiting.partition("=")[2])


@pytest.mark.cluster
def test_a_real_triton_takes_the_arguments_and_answers_the_probes(
    triton: StartTriton, tmp_path: Path
) -> None:
    folder = write_repository(tmp_path / "repository")
    broken = write_repository(folder, "broken") / "broken_member1/1/model.onnx"
    broken.write_bytes(b"no network")
    folder_argument, *others = container("triton")["args"]
    assert folder_argument == "--model-repository=/repository"
    server = triton(folder, "--", *others)
    assert server.models
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        path = container("triton")[probe]["httpGet"]["path"]
        # Ready, although one ensemble is broken.
        assert httpx.get(f"http://{server.http}{path}", trust_env=False).status_code == 200
