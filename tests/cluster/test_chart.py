"""The Helm chart, rendered by Helm, with every toggle."""

import functools
import json
import re
from typing import Any

import pytest
import yaml

from tests.cluster.cases import CASES, rendered
from tests.cluster.chart import CHART, NAME, ROOT, TOOLS, render
from tests.cluster.schemas import OTHERS, VERSIONS, fault

pytestmark = pytest.mark.skipif(not (TOOLS / "helm_python").exists(), reason="`make test` fetches Helm")

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


@pytest.mark.parametrize("name", CASES)
def test_helm_lint_finds_nothing(name: str) -> None:
    assert rendered()[name].findings == ["icon is recommended"]


def distinct() -> list[dict[str, Any]]:
    """Return the objects of all cases, each once."""
    found = {json.dumps(one, sort_keys=True): one for case in rendered().values() for one in case.objects}
    return [*found.values()]


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_every_object(version: str) -> None:
    own = [one for one in distinct() if one["kind"] not in OTHERS]
    found = [text for one in own if (text := fault(one, version))]
    # Image volumes came with 1.31.
    expected = 1 if int(version.partition(".")[2]) < 31 else 0
    assert len(found) == expected, found
    assert all("('image' was unexpected)" in text for text in found)


def test_a_misspelt_field_would_be_noticed() -> None:
    broken = json.loads(json.dumps(rendered()["default"]["Deployment"]))
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    assert all("readynessProbe" in (fault(broken, version) or "") for version in VERSIONS)


@pytest.mark.parametrize("name", CASES)
def test_every_container_is_confined(name: str) -> None:
    for one in rendered()[name].objects:
        if one["kind"] != "Deployment":
            continue
        pod = one["spec"]["template"]["spec"]
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", CASES)
def test_selectors_select_one_tier(name: str) -> None:
    """A Service that also selected Triton's pods would send HTTP requests to Triton."""
    case = rendered()[name]
    tiers = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in case.objects
        if one["kind"] == "Deployment"
    }
    for one in case.objects:
        spec = one.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if selector is None:
            continue
        wanted = (selector.get("matchLabels") or selector).items()
        if one["kind"] == "ServiceMonitor":
            (target,) = [
                s
                for s in case.objects
                if s["kind"] == "Service" and wanted <= s["metadata"]["labels"].items()
            ]
            assert target["metadata"]["name"] == one["metadata"]["name"]
            assert {end["port"] for end in spec["endpoints"]} <= {
                port["name"] for port in target["spec"]["ports"]
            }
        else:
            assert [tier for tier, labels in tiers.items() if wanted <= labels.items()] == [
                one["metadata"]["name"]
            ]


@pytest.mark.parametrize("name", CASES)
def test_scalers_name_the_deployment_and_leave_it_no_number(name: str) -> None:
    case = rendered()[name]
    scaled = {
        one["spec"]["scaleTargetRef"]["name"]
        for one in case.objects
        if one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    }
    deployments = {
        one["metadata"]["name"]: one["spec"] for one in case.objects if one["kind"] == "Deployment"
    }
    assert {tier for tier, spec in deployments.items() if "replicas" not in spec} == scaled


def test_the_names_are_short_enough() -> None:
    names = [one["metadata"]["name"] for one in rendered()["names"].objects]
    assert max(map(len, names)) <= 63
    assert "x" * 56 + "-triton" in names
    labels = rendered()["names"]["Service", "x" * 56]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "n" * 62


def test_the_default_objects() -> None:
    assert rendered()["default"].kinds() == [
        ("Deployment", NAME),
        ("PodDisruptionBudget", NAME),
        ("Service", NAME),
        ("ServiceAccount", NAME),
    ]


@pytest.mark.parametrize("text", ["true", "null", "123", "1e3", "0x1f", "0o7", "1.5", "y"])
def test_text_that_yaml_takes_for_something_else_stays_text(text: str) -> None:
    """Every name that a user chooses; what Kubernetes accepts for strings alone tells."""
    case, named = render(
        {
            "nameOverride": text,
            "fullnameOverride": "x",
            "image": {"tag": text},
            "repository": {
                "source": "bucket",
                "folder": text,
                "bucket": {"url": f"s3://{text}", "secret": text},
            },
            "auth": {"apiKeys": {"secret": text, "key": text}},
            "tls": {"secret": text},
            "httpRoute": {"enabled": True, "parentRefs": [{"name": "x"}], "canary": {"service": text}},
            "topologySpread": [{"maxSkew": 1, "topologyKey": text, "whenUnsatisfiable": "DoNotSchedule"}],
            "serviceMonitor": {
                "enabled": True,
                "apiKey": {"secret": text, "key": text},
                "tlsConfig": {"a": "b"},
            },
            "serviceAccount": {"name": text},
            "priorityClassName": text,
        },
        {"fullnameOverride": text if text.isalpha() else "x", "autoscaling": {"enabled": True}},
    )
    objects = [*case.objects, *named.objects]
    assert not [found for one in objects if one["kind"] not in OTHERS and (found := fault(one, "1.34"))]
    assert case["HTTPRoute"]["spec"]["rules"][0]["backendRefs"][1]["name"] == text
    credentials = case["ServiceMonitor"]["spec"]["endpoints"][0]["authorization"]["credentials"]
    assert credentials == {"name": text, "key": text}


@pytest.mark.parametrize("name", ["default", "s3", "triton"])
def test_a_pod_may_get_cores_of_its_own(name: str) -> None:
    """Its quality of service is Guaranteed: limits and equal requests, init containers included.

    https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/#guaranteed
    """
    for one in rendered()[name].objects:
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]["spec"]
            for container in [*pod.get("initContainers", []), *pod["containers"]]:
                resources = container["resources"]
                assert {"cpu", "memory"} <= resources["limits"].keys()
                assert resources.get("requests", {}).items() <= resources["limits"].items()


def test_an_update_is_given_up_only_after_the_time_that_a_start_may_take() -> None:
    for one in rendered()["triton"].objects:
        if one["kind"] == "Deployment":
            (container,) = one["spec"]["template"]["spec"]["containers"]
            probe = container["startupProbe"]
            assert one["spec"]["progressDeadlineSeconds"] > probe["periodSeconds"] * probe["failureThreshold"]


def test_values_without_a_default_of_nothing_cannot_be_deleted() -> None:
    """Helm deletes what is null, and a template without it would say `nil pointer` or render nothing."""

    def missing(schema: dict[str, Any], values: dict[str, Any], path: str = "") -> list[str]:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        if "properties" not in schema or path.endswith("resources"):
            return []
        here = [
            f"{path}.{key}"
            for key, value in values.items()
            if value not in (None, "", [], {}) and key not in schema.get("required", [])
        ]
        below = [
            text
            for key, value in values.items()
            if isinstance(value, dict) and key in schema["properties"]
            for text in missing(schema["properties"][key], value, f"{path}.{key}")
        ]
        return here + below

    allowed = {".autoscaling.requests", ".settings.max_connection_age_ms"}
    assert set(missing(SCHEMA, VALUES)) <= allowed | {".repository.bucket.image.tag", ".triton.image.tag"}


def test_the_values_that_the_guide_shows_are_accepted() -> None:
    guide = (ROOT / "docs/guides/serving/cluster.md").read_text()
    shown = [yaml.safe_load(text) for text in re.findall("```yaml\n(.*?)```", guide, re.DOTALL)]
    shown += [
        functools.reduce(lambda value, key: {key: value}, reversed(name.split(".")), yaml.safe_load(text))
        for name, text in re.findall(r"--set ([\w.]+)=(\S+)", guide)
        if not name.startswith(("httpRoute.canary", "httpRoute.weight"))
    ]
    assert len(shown) > 8
    render(*shown)
