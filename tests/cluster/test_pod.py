"""The rendered pod in podman, with this repository's images: what a kubelet would run, probe and stop."""

import copy
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.cluster.chart import NAME, ROOT, render
from tests.cluster.test_gateway import PROBES
from tests.integration.gateway import RED
from tests.server.onnx_repository import write_repository

FILES = os.environ.get("COSERVE_POD_FILES")
"""The folder with stand-ins for the base images, which the script `run` fills."""
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(FILES is None, reason="run by tests/cluster/run, as root"),
]

MEMORY = 1 << 30
VALUES = {
    "image": {"repository": "localhost/coserve-gateway"},
    "repository": {"image": {"repository": "localhost/coserve-models"}},
    "settings": {"default_model": "pair"},
    "resources": {"requests": {"cpu": 2, "memory": "1Gi"}, "limits": {"cpu": 2, "memory": "1Gi"}},
}
URL = "http://127.0.0.1:8000"


def podman(*arguments: str | Path, check: bool = True) -> str:
    """Run a command, and return its output."""
    options = ["--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=file"]
    place = [f"--root={FILES}/storage", "--runroot=/run/storage"]
    done = subprocess.run(["podman", *options, *place, *arguments], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def build(dockerfile: str, context: Path, name: str) -> None:
    options = ["--network=host", "--isolation=chroot", "--layers=false"]
    podman("build", *options, f"--file={ROOT / dockerfile}", f"--tag=localhost/{name}:0.1.0", context)


def base(dockerfile: str) -> str:
    """Return the image that a Dockerfile begins with."""
    text = (ROOT / dockerfile).read_text()
    (name,) = re.findall(r"^(?:ARG PYTHON_IMAGE=|FROM )(\w[\w.:-]+)$", text, re.MULTILINE)
    return f"docker.io/library/{name}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert FILES is not None
    python = base("server/Dockerfile")
    podman("import", "--change", 'CMD ["python"]', f"{FILES}/root.tar", python)
    podman("tag", python, base("deploy/models.Dockerfile"))
    context = tmp_path_factory.mktemp("context") / "source"
    tracked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.check_output(tracked, cwd=ROOT, text=True).split("\0")):
        if not name.startswith("model_repository/") and (ROOT / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, context / name)
    shutil.copytree(f"{FILES}/wheels", context / "wheels")
    build("server/Dockerfile", context, "coserve-gateway")
    models = write_repository(tmp_path_factory.mktemp("models") / "repository")
    subprocess.run(["chmod", "-R", "a+rX", models], check=True)
    build("deploy/models.Dockerfile", models, "coserve-models")


def playable(deployment: dict[str, Any]) -> dict[str, Any]:
    """Return the Deployment as podman plays it: one replica, on the host's network, which needs no ports."""
    played = copy.deepcopy(deployment)
    played["spec"]["replicas"] = 1
    # podman 4.3 reads the Deployment's: by default it removes init containers that end, at times too early.
    annotations = played["metadata"].setdefault("annotations", {})
    annotations["io.podman.annotations.init.container.type"] = "always"
    pod = played["spec"]["template"]["spec"]
    pod["hostNetwork"] = True
    # Else podman starts the gateway again, often before `podman wait` has seen that it ended.
    pod["restartPolicy"] = "Never"
    (gateway,) = pod["containers"]
    (port,) = gateway.pop("ports")
    for probe in PROBES:
        assert gateway[probe]["httpGet"]["port"] == port["name"]
        gateway[probe]["httpGet"]["port"] = port["containerPort"]
    return played


@pytest.fixture(scope="module")
def container(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    (case,) = render(VALUES)
    file = tmp_path_factory.mktemp("pod") / "pod.yaml"
    file.write_text(yaml.safe_dump(playable(case["Deployment", NAME])))
    podman("play", "kube", file)
    name = f"{NAME}-pod-0-gateway"
    for _ in range(3000):
        if answer("/readyz") == 200:
            break
        time.sleep(0.1)
    yield name
    podman("play", "kube", "--down", file)


def answer(path: str) -> int | None:
    try:
        return httpx.get(URL + path, trust_env=False, timeout=60).status_code
    except httpx.TransportError:
        return None


def test_the_pod_serves_what_the_init_container_copied(container: str) -> None:
    (case,) = render(VALUES)
    assert {answer(case.gateway[probe]["httpGet"]["path"]) for probe in PROBES} == {200}
    reply = httpx.post(
        f"{URL}/v1/classify", content=RED, headers={"Content-Type": "image/png"}, trust_env=False
    )
    assert reply.json()["model"] == "pair"
    assert reply.json()["degraded"] is False


def test_the_container_is_confined(container: str) -> None:
    (found,) = json.loads(podman("inspect", container))
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert found["HostConfig"]["Memory"] == MEMORY
    assert found["HostConfig"]["NanoCpus"] == 2_000_000_000
    status = podman("exec", container, "cat", "/proc/1/status")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert set(fields["Uid"].split()) == {"10001"}
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    assert fields["Seccomp"].strip() == "2"
    for path, writable in (("/x", False), ("/repository/x", False), ("/tmp/x", True)):
        written = podman("exec", container, "sh", "-c", f"touch {path} && echo yes", check=False)
        assert (written.strip() == "yes") is writable, path


def test_it_drains_and_ends_in_peace(container: str) -> None:
    podman("kill", "--signal=TERM", container)
    for _ in range(6000):
        if (status := answer("/readyz")) != 200:
            break
        time.sleep(0.01)
    assert status == 503
    assert answer("/healthz") == 200
    assert podman("wait", container).strip() == "0"
