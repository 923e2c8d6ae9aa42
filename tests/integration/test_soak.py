"""The soak test passes on a real server within seconds, and notices what it is made to find."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.images.hostile_images import encoded
from tests.server.onnx_repository import write_repository

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
from benchmarks.soak import clients  # noqa: E402
from benchmarks.soak.models import Models  # noqa: E402

IMAGES = [encoded((9, 9)), encoded((30, 20), "JPEG")]
OPTIONS = ("--minutes", "0.1", "--reload-seconds", "1", "--burst-seconds", "2.5", "--sample-seconds", "0.5")


@pytest.fixture
def models(tmp_path: Path) -> Models:
    write_repository(tmp_path, "pair")
    return Models(tmp_path, IMAGES)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two ensembles, which can exchange networks; their batches take longer than sending a request."""
    folder = tmp_path / "models"
    write_repository(folder, "pair", size=32, depth=12, channels=48)
    write_repository(tmp_path / "more", "other", size=32, depth=12, channels=40)
    for model in (tmp_path / "more").iterdir():
        model.rename(folder / model.name)
    return folder


def soak(folder: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "benchmarks" / "soak" / "soak.py")
    slow = ("--deadline-ms", "60000")
    command = [script, "--repository", str(folder), "--output", str(output), *OPTIONS, *slow, *options]
    # The soak ends when its last stalled upload is refused, by default after a minute.
    soon = {**os.environ, "COSERVE_UPLOAD_TIMEOUT_MS": "6000"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=soon, check=False)


def reply(version: str, logits: np.ndarray, **changes: Any) -> httpx.Response:
    """Return a response of `/v1/classify` with these logits, `[images, classes]`."""
    results = [
        {"predictions": [{"class_id": int(c), "logit": float(row[c])} for c in np.argsort(row)[::-1]]}
        for row in logits
    ]
    return httpx.Response(200, json={"version": version, "degraded": False, "results": results} | changes)


def test_a_sound_server_passes(repository: Path, tmp_path: Path) -> None:
    ended = soak(repository, tmp_path / "out.json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == "", "a bar is for terminals"
    report = json.loads((tmp_path / "out.json").read_text())
    # In so few seconds, a client may or may not happen to disconnect.
    assert {"ok", "refused"} <= set(report["total"]) <= {"ok", "refused", "overloaded", "left"}
    assert not report["failures"]
    kinds = report["kinds"]
    assert sum(kinds.get(form, {}).get("ok", 0) for form in clients.FORMS) > 5
    assert kinds["burst"]["overloaded"] > 0
    assert kinds["reload of a new version"]["ok"] > 0
    for when in ("start", "end", "most"):
        assert report[when]["memory_mb"] > 50
        assert report[when]["threads"] > 1
    assert report["afterwards"]["open_files"] < report["most"]["open_files"]


def test_other_networks_than_those_it_knows_fail(tmp_path: Path, models: Models) -> None:
    """The server uses weights that the soak test does not know of."""
    config = models.folder / "pair" / "config.pbtxt"
    config.write_text(config.read_text() + 'parameters { key: "weights" value { string_value: "[1, 3]" } }\n')
    ended = soak(models.folder, tmp_path / "out.json", "--reload-seconds", "60")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["total"]["wrong"] > 5
    assert "WrongAnswerError: version 1, degraded False" in report["failures"][0]


def test_only_what_was_served_meanwhile_is_right(models: Models) -> None:
    asking = clients.Clients(1, models, IMAGES)
    (old,) = models.allowed["pair"]
    assert asking.check("v1 file", reply("1", old.logits[[1]]), [1], models.allowed["pair"]) == old
    wrong = [
        reply("1", old.logits[[0]]),
        reply("2", old.logits[[1]]),
        reply("1", old.logits[[1]], degraded=True),
        reply("1", old.logits[[1, 1]]),
    ]
    for answer in wrong:
        with pytest.raises(clients.WrongAnswerError):
            asking.check("v1 file", answer, [1], models.allowed["pair"])
    with pytest.raises(clients.UnexpectedError, match="503"):
        asking.check("v1 file", httpx.Response(503), [1], models.allowed["pair"])


def test_changed_files_are_an_ensemble_s_only_answer_once_served(repository: Path) -> None:
    models = Models(repository, IMAGES)
    (old,) = models.allowed["pair"]
    new = models.change("pair", in_place=False)
    assert (new.version, models.allowed["pair"]) == ("2", (old, new))
    assert np.abs(new.logits - old.logits).max() > clients.TOLERANCE
    models.settle("pair")
    assert models.allowed["pair"] == (new,)
    assert not (repository / "pair_member0" / "1").exists()
    # Reading the files again gives the same.
    (read,) = Models(repository, IMAGES).allowed["pair"]
    assert read.version == "2"
    np.testing.assert_allclose(read.logits, new.logits)
