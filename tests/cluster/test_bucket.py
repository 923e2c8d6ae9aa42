"""The init container that copies from a bucket: its command, with a real rclone and a real S3 server."""

import filecmp
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.chart import TOOLS, render
from tests.cluster.envoy import free_port
from tests.server.onnx_repository import write_repository

RCLONE = TOOLS / "servers/bin/rclone"
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not RCLONE.exists(), reason="`make test-cluster` fetches rclone"),
]
KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "something"}
"""What the Secret holds."""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "models/photos"
    write_repository(folder)
    # As an export does, since a bucket has no empty folders.
    (folder / "pair/1/.keep").write_text("kept")
    return folder


@pytest.fixture(scope="module")
def endpoint(bucket: Path) -> Iterator[str]:
    """Serve the folder above the bucket over S3."""
    address = f"127.0.0.1:{free_port()}"
    command = [RCLONE, "serve", "s3", f"--addr={address}", f"--auth-key={','.join(KEYS.values())}"]
    with subprocess.Popen([*command, bucket.parents[1]], env=environment()) as process:
        for _ in range(6000):
            try:
                httpx.get(f"http://{address}", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.01)
        yield f"http://{address}"
        process.terminate()


def environment(**variables: str) -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if "proxy" not in name.lower()} | variables


def copy(url: str, endpoint: str, target: Path, **secret: str) -> subprocess.CompletedProcess[str]:
    """Run the init container's command; only the target folder and the home are others."""
    variables = {"RCLONE_S3_ENDPOINT": endpoint, "RCLONE_S3_PROVIDER": "Rclone", "RCLONE_RETRIES": 1}
    (case,) = render(
        {"repository": {"source": "bucket", "bucket": {"url": url, "secret": "s3", "env": variables}}}
    )
    (container,) = case.pod["initContainers"]
    arguments = [str(target) if text == "/repository" else text for text in container["args"]]
    assert str(target) in arguments
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    given = {one["name"]: one["value"] for one in container["env"]}
    assert given["HOME"] == "/tmp"
    return subprocess.run(
        [RCLONE, *arguments], env=environment(**secret, **given), capture_output=True, text=True, timeout=120
    )


def test_the_whole_repository_is_copied(bucket: Path, endpoint: str, tmp_path: Path) -> None:
    done = copy("s3://models/photos", endpoint, tmp_path / "copy", **KEYS)
    assert done.returncode == 0, done.stderr
    files = [path.relative_to(bucket) for path in bucket.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert filecmp.cmpfiles(bucket, tmp_path / "copy", files, shallow=False)[0] == files


@pytest.mark.parametrize(
    ("url", "keys"),
    [
        ("s3://models/other", KEYS),
        ("s3://other/photos", KEYS),
        ("s3://models/photos", KEYS | {"AWS_SECRET_ACCESS_KEY": "x"}),
    ],
    ids=["folder", "bucket", "key"],
)
def test_what_cannot_be_copied_is_an_error(
    url: str, keys: dict[str, str], endpoint: str, tmp_path: Path
) -> None:
    """Otherwise the gateway would start with an empty repository, and report that instead."""
    done = copy(url, endpoint, tmp_path / "copy", **keys)
    assert done.returncode != 0
    assert done.stderr
