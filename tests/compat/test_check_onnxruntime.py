"""The script that old ONNX Runtimes run, in today's."""

import json
import subprocess
import sys
from pathlib import Path

import onnx

from coserve_export.compatibility import OLDEST, find_runtime
from tests.compat.check_onnxruntime import RECORD, REPOSITORY, find_networks

SCRIPT = Path(__file__).with_name("check_onnxruntime.py")


def check(*arguments: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


def test_the_shipped_networks_give_the_recorded_logits() -> None:
    done = check()
    assert (done.returncode, done.stderr) == (0, "")
    assert "20 networks, 0 wrong" in done.stdout


def test_the_shipped_networks_ask_for_the_oldest_runtime() -> None:
    assert {find_runtime(onnx.load(path)) for path in find_networks(REPOSITORY).values()} == {OLDEST}


def test_other_logits_and_missing_networks_are_found(tmp_path: Path) -> None:
    recorded = json.loads(RECORD.read_text("utf-8"))
    names = sorted(name for name in recorded if "member" in name)
    recorded[names[0]][1][3] += 0.1
    del recorded[names[1]]
    recorded["gone/1/model.onnx"] = [[0.0]]
    (tmp_path / "logits.json").write_text(json.dumps(recorded))
    done = check(REPOSITORY, tmp_path / "logits.json")
    assert done.returncode == 1
    assert sorted(line.partition(": ")[::2] for line in done.stderr.splitlines()) == sorted(
        [
            (names[0], "other logits than those recorded"),
            (names[1], "not recorded"),
            ("gone/1/model.onnx", f"recorded, but not in {REPOSITORY}"),
        ]
    )
