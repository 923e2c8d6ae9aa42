"""What `coserve classify` prints, and what it sends."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from typer.testing import CliRunner, Result

import coserve_cli.classify
import coserve_client
import coserve_server.settings
from coserve_cli.classify import EarlyStop
from coserve_cli.main import app
from tests.cli.classify_server import Server


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["classify", *map(str, arguments)])


def test_prints_a_line_per_image_and_a_summary(server: Server, folder: Path) -> None:
    result = run(folder / "a.png", folder / "b.JPG", "--top-k", 2, "--model", "E")

    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"{folder}/a.png  cat 93.1%  dog 5.0%",
        f"{folder}/b.JPG  cat 93.1%  dog 5.0%",
        "E version 1: 2 members, overlap 1.93",
    ]
    assert result.stderr == ""
    assert server.queries == [{"top_k": "2", "member_predictions": "false", "model": "E"}]


def test_an_undivided_network_has_one_member(server: Server, folder: Path) -> None:
    server.members = 1
    assert run(folder / "a.png").stdout.splitlines()[-1] == "E version 1: 1 member, overlap 1.93"


def test_tells_classes_of_the_same_name_apart(server: Server, folder: Path) -> None:
    server.labels = ("crane", "crane")
    lines = run(folder / "a.png", "--member-predictions").stdout.splitlines()
    assert lines[0] == f"{folder}/a.png  crane (class 3) 93.1%  crane (class 5) 5.0%"
    assert lines[1].endswith("E_member0  " + " " * (len(str(folder / "a.png")) - 11) + "crane 93.1%")


def test_searches_folders_and_batches(server: Server, folder: Path) -> None:
    result = run(folder, folder / "notes.txt", "--batch-size", 3)
    assert result.exit_code == 0
    assert sorted(server.requests) == [["a.png", "b.JPG", "c.webp"], ["notes.txt"]]


def test_keeps_requests_below_the_server_s_limit(server: Server, tmp_path: Path) -> None:
    for name, mebibytes in (("a.png", 9), ("b.png", 6), ("c.png", 2), ("d.png", 20), ("e.png", 1)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(mebibytes * 2**20)
    assert run(tmp_path).exit_code == 0
    assert sorted(server.requests) == [["a.png", "b.png"], ["c.png"], ["d.png"], ["e.png"]]


def test_prints_json_lines(server: Server, folder: Path) -> None:
    result = run(folder / "a.png", folder / "b.JPG", "--json", "--top-k", 1, "--member-predictions")

    lines = [json.loads(line) for line in result.stdout.splitlines()]
    cat = {"label": "cat", "class_id": 3, "probability": 0.931, "logit": 7.1}
    assert [line["file"] for line in lines] == [f"{folder}/a.png", f"{folder}/b.JPG"]
    assert lines[0] == {
        "file": f"{folder}/a.png",
        "model": "E",
        "version": "1",
        "degraded": False,
        "missing": [],
        "overlap": 1.93,
        "prediction_sets": None,
        "early_stopping": None,
        "measured_top1": 0.93,
        "ensemble_members": 2,
        "predictions": [cat],
        "uncertainty": {"entropy": 0.3, "disagreement": 0.1},
        "member_predictions": {"E_member0": [cat]},
        "prediction_set": None,
        # An older server's reply.
        "members": None,
    }


def test_shows_member_predictions(server: Server, folder: Path) -> None:
    lines = run(folder / "a.png", "--member-predictions").stdout.splitlines()
    assert lines[1] == f"{'  E_member0':<{len(str(folder / 'a.png'))}}  cat 93.1%"


def test_shows_prediction_sets(server: Server, folder: Path) -> None:
    lines = run(folder / "a.png", "--top-k", 1, "--coverage", 0.95).stdout.splitlines()
    assert lines[1] == f"{'  95% set':<{len(str(folder / 'a.png'))}}  cat 93.1%  dog 5.0%"
    server.set_size = 0
    lines = run(folder / "a.png", "--coverage", 0.995, "--set-method", "raps").stdout.splitlines()
    assert lines[1].startswith("  99.5% set ")
    assert lines[1].endswith("  empty: no class is probable enough")
    assert [(query["coverage"], query.get("set_method")) for query in server.queries] == [
        ("0.95", None),
        ("0.995", "raps"),
    ]


def test_prediction_sets_are_in_the_json(server: Server, folder: Path) -> None:
    line = json.loads(run(folder / "a.png", "--json", "--coverage", 0.9, "--set-method", "raps").stdout)
    assert line["prediction_sets"] == {"coverage": 0.9, "method": "raps", "threshold": 0.97}
    assert [one["label"] for one in line["prediction_set"]] == ["cat", "dog"]


def test_says_that_too_few_members_answered_for_a_set(server: Server, folder: Path) -> None:
    server.lost = True
    server.threshold = None
    lines = run(folder / "a.png", "--coverage", 0.95).stdout.splitlines()
    assert lines[1].endswith("  not calibrated for answers of 1 of 2 members")


def test_says_how_many_members_answered(server: Server, folder: Path) -> None:
    server.stopped = {"a.png": ["E_member1"]}
    server.threshold = None
    images = (folder / "a.png", folder / "b.JPG")
    result = run(*images, "--top-k", 1, "--early-stop", "always", "--coverage", 0.9)
    set_title = f"{'  90% set':<{len(str(images[0]))}}"
    assert result.stdout.splitlines() == [
        f"{images[0]}  cat 93.1%  (1 of 2 members)",
        f"{set_title}  not calibrated for answers of 1 of 2 members",
        f"{images[1]}  cat 93.1%",
        f"{set_title}  not calibrated for answers of 2 of 2 members",
        "E version 1: 2 members, 1.50 per image, overlap 1.93",
    ]
    assert (result.exit_code, result.stderr) == (0, "")
    assert [query["early_stop"] for query in server.queries] == ["always"]
    lines = [json.loads(line) for line in run(*images, "--json").stdout.splitlines()]
    assert [line["members"] for line in lines] == [["E_member1"], ["E_member0", "E_member1"]]
    assert [line["early_stopping"] for line in lines] == [{"confidence": 0.8, "loss": 0.001}] * 2


def test_marks_the_images_of_a_degraded_reply(server: Server, folder: Path) -> None:
    server.lost = True
    lines = run(folder / "a.png", "--top-k", 1).stdout.splitlines()
    assert lines == [
        f"{folder}/a.png  cat 93.1%  (1 of 2 members)",
        "E version 1: 2 members, overlap 1.93",
    ]


def test_early_stop_takes_the_server_s_words(server: Server, folder: Path) -> None:
    assert [choice.value for choice in EarlyStop] == list(get_args(coserve_client.EarlyStop))
    assert get_args(coserve_client.EarlyStop) == get_args(coserve_server.settings.EarlyStop)
    result = run(folder / "a.png", "--early-stop", "never")
    assert result.exit_code == 2
    assert "'never' is not one of 'off', 'loaded', 'always'" in " ".join(result.stderr.split())
    assert server.requests == []


def test_a_method_needs_a_coverage(server: Server, folder: Path) -> None:
    result = run(folder / "a.png", "--set-method", "lac")
    assert result.exit_code == 2
    assert "--set-method needs --coverage" in result.stderr
    assert server.requests == []


def test_names_missing_members(server: Server, folder: Path) -> None:
    server.lost = True
    result = run(folder / "a.png", "--json")
    assert json.loads(result.stdout)["missing"] == ["E_member1"]
    assert result.stderr == "warning: 1 of 1 replies lack members: E_member1 (deadline)\n"
    assert result.exit_code == 0


def test_classifies_the_others_if_one_image_is_bad(server: Server, folder: Path) -> None:
    (folder / "b.JPG").write_bytes(b"bad")
    result = run(folder)

    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        f"{folder}/a.png",
        f"{folder}/deep/c.webp",
        "E",
    ]
    assert result.stderr == f"error: {folder}/b.JPG: b.JPG is not an image (HTTP 400)\n"
    assert server.requests == [["a.png", "b.JPG", "c.webp"], ["a.png"], ["b.JPG"], ["c.webp"]]


def test_reads_a_pipe_once(server: Server, folder: Path) -> None:
    end, start = os.pipe()
    os.write(start, b"image")
    os.close(start)
    (folder / "b.JPG").write_bytes(b"bad")
    result = run(f"/dev/fd/{end}", folder / "none.png", folder / "b.JPG")
    os.close(end)
    assert result.stdout.startswith(f"/dev/fd/{end} ")
    assert [line.split()[1].rstrip(":") for line in result.stderr.splitlines()] == [
        "cannot",
        f"{folder}/b.JPG",
    ]


def test_sends_smaller_requests_if_one_is_too_large(server: Server, folder: Path) -> None:
    server.limit = 1
    assert run(folder).exit_code == 0

    server.limit = 0
    result = run(folder / "a.png")
    assert result.exit_code == 1
    assert "a.png: the request is larger than 1 MB (HTTP 413)" in result.stderr
    assert result.stdout == ""


def test_reads_standard_input(server: Server) -> None:
    result = CliRunner().invoke(app, ["classify", "-"], input=b"image")
    assert result.stdout.startswith("-  cat 93.1%")
    assert server.requests == [["stdin"]]


def test_reports_what_it_cannot_send(tmp_path: Path, server: Server) -> None:
    result = run(tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: no images in {tmp_path}: no file there ends in .apng .avif .bmp")

    result = run(tmp_path / "none.jpg")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: cannot read {tmp_path}/none.jpg: No such file or directory\n"

    assert run().exit_code == 2
    assert server.requests == []


def test_names_what_cannot_be_looked_up(server: Server, folder: Path, tmp_path: Path) -> None:
    # Path.is_dir raises an error for it, as for a file in a folder that may not be searched.
    long = tmp_path / ("x" * 300 + ".png")
    for options in ((), ("--keep-disagreeing", tmp_path / "kept")):
        result = run(folder / "a.png", long, *options)
        assert (result.exit_code, result.stderr) == (1, f"error: cannot read {long}: File name too long\n")
        assert result.stdout.startswith(f"{folder}/a.png ")


def test_one_bad_argument_spares_the_others(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may read everything.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.zip").write_bytes(b"PK")
    arguments = (tmp_path / "bad.zip", folder / "a.png", tmp_path / "empty", folder / "b.JPG")
    result = run(*arguments, "--top-k", 1)
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        f"{folder}/a.png",
        f"{folder}/b.JPG",
        "E",
    ]
    zip_line, folder_line = result.stderr.splitlines()
    assert zip_line == f"error: cannot read {tmp_path}/bad.zip: File is not a zip file"
    assert folder_line.startswith(f"error: no images in {tmp_path}/empty: ")


def test_names_standard_input_that_cannot_be_read(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coserve_cli.classify, "sys", SimpleNamespace(stdin=None))
    result = run("-", folder / "a.png")
    assert (result.exit_code, result.stderr) == (1, "error: cannot read standard input: it is closed\n")
    assert result.stdout.startswith(f"{folder}/a.png ")


def test_reports_an_absent_server(folder: Path) -> None:
    result = run(folder, "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no server answers at http://127.0.0.1:9")
    assert len(result.stderr.splitlines()) == 1
