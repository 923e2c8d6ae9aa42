"""`coserve classify --keep-disagreeing`."""

import csv
import json
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from coserve_cli.main import app
from tests.cli.classify_server import Server


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["classify", *map(str, arguments)])


@pytest.fixture
def photos(tmp_path: Path, server: Server) -> Path:
    """Ten images in two folders; the members disagree more on later ones, and on 8 and 9 alike."""
    folder = tmp_path / "photos"
    for number in range(10):
        path = folder / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image %d" % number)
        server.uncertainty[path.name] = (1.0 - number / 10, min(number, 8) / 10)
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_copies_the_most_disputed_images(photos: Path, tmp_path: Path, server: Server) -> None:
    out = tmp_path / "out"
    result = run(photos, "--keep-disagreeing", out, "--keep", 3)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == [
        "E version 1: 2 members, overlap 1.93",
        f"kept 3 of 10 images in {out}; see {out}/disagreement.csv",
    ]
    kept = {f"unlabelled/cat/{number}.png" for number in (7, 8, 9)}
    assert files(out) == kept | {"disagreement.csv"}
    assert (out / "unlabelled/cat/9.png").read_bytes() == b"image 9"
    table = rows(out / "disagreement.csv")
    # Of 8 and 9, which have the same disagreement, 8 has the higher entropy.
    assert [row["file"] for row in table] == [f"unlabelled/cat/{number}.png" for number in (8, 9, 7)]
    assert table[0] == {
        "file": "unlabelled/cat/8.png",
        "source": f"{photos}/0/8.png",
        "prediction": "cat",
        "probability": "0.9310",
        "disagreement": "0.8000",
        "entropy": "0.2000",
        "E_member0": "cat",
        "E_member0_probability": "0.9310",
        "E_member1": "",
        "E_member1_probability": "",
    }


@pytest.mark.parametrize(
    ("options", "number"), [((), 10), (("--keep", "25%"), 3), (("--keep", "0.1%"), 1), (("--keep", "9"), 9)]
)
def test_keeps_a_number_or_a_share(
    photos: Path, tmp_path: Path, options: tuple[str, ...], number: int
) -> None:
    run(photos, "--keep-disagreeing", tmp_path / "out", *options)
    assert len(files(tmp_path / "out")) == number + 1


def test_a_share_is_of_the_classified_images(photos: Path, tmp_path: Path, server: Server) -> None:
    for number in range(5):
        (photos / str(number % 2) / f"{number}.png").write_bytes(b"bad")
    result = run(photos, "--keep-disagreeing", tmp_path / "out", "--keep", "40%")
    assert result.exit_code == 1
    assert result.stderr.count("is not an image (HTTP 400)") == 5
    assert f"kept 2 of 5 images in {tmp_path}/out" in result.stdout


def test_members_are_printed_only_where_asked(photos: Path, tmp_path: Path, server: Server) -> None:
    result = run(photos, "--keep-disagreeing", tmp_path / "out", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["member_predictions"] for line in lines] == [None] * 10
    assert result.stderr == f"kept 10 of 10 images in {tmp_path}/out; see {tmp_path}/out/disagreement.csv\n"
    assert {query["member_predictions"] for query in server.queries} == {"true"}


def test_all_members_answer(photos: Path, tmp_path: Path, server: Server) -> None:
    folder = tmp_path / "out"
    result = run(photos, "--keep-disagreeing", folder, "--early-stop", "loaded")
    assert result.exit_code == 2
    assert "--keep-disagreeing needs all members: leave out --early-stop" in result.stderr
    assert (server.queries, folder.exists()) == ([], False)
    for options in ((), ("--early-stop", "off")):
        assert run(photos, "--keep-disagreeing", folder, *options).exit_code == 0
    assert {query["early_stop"] for query in server.queries} == {"off"}


def test_a_second_run_adds_only_what_is_new(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, "--keep-disagreeing", out, "--keep", 2)
    (out / "train/dog").mkdir(parents=True)
    (out / "unlabelled/cat/9.png").rename(out / "train/dog/9.png")
    result = run(photos, "--keep-disagreeing", out, "--keep", 3)
    assert result.stdout.splitlines()[-1] == (
        f"kept 1 of 10 images in {out}; 2 were there already; see {out}/disagreement-2.csv"
    )
    images = {"train/dog/9.png", "unlabelled/cat/8.png", "unlabelled/cat/7.png"}
    assert files(out) == images | {"disagreement.csv", "disagreement-2.csv"}
    assert [row["file"] for row in rows(out / "disagreement-2.csv")][:2] == [
        "unlabelled/cat/8.png",
        "train/dog/9.png",
    ]


def test_images_in_zips(photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in photos.rglob("*.png"):
            archive.write(path, path.relative_to(photos.parent))
        archive.writestr("notes.txt", "")
    result = run(tmp_path / "photos.zip", "--keep-disagreeing", tmp_path / "out", "--keep", 1)
    assert result.stdout.startswith(f"{tmp_path}/photos.zip/photos/0/0.png  cat 93.1%")
    assert (tmp_path / "out/unlabelled/cat/8.png").read_bytes() == b"image 8"


def test_images_that_vanish_are_named(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coserve_cli.keep_disagreeing import Keeping

    add = Keeping.add

    def add_and_delete(self: Keeping, item: object, result: object) -> None:
        add(self, item, result)
        (photos / "1/9.png").unlink(missing_ok=True)

    monkeypatch.setattr(Keeping, "add", add_and_delete)
    result = run(photos, "--keep-disagreeing", tmp_path / "out", "--keep", 2)
    assert result.exit_code == 1
    assert result.stderr == f"error: cannot read {photos}/1/9.png: No such file or directory\n"
    assert f"kept 1 of 10 images in {tmp_path}/out" in result.stdout


@pytest.mark.parametrize("text", ["0", "-1", "0%", "101%", "ten", "5 %", "1.5"])
def test_refuses_other_amounts(text: str, tmp_path: Path) -> None:
    result = run(tmp_path, "--keep-disagreeing", tmp_path / "out", f"--keep={text}")
    assert result.exit_code == 2
    assert "--keep takes a number from 1, or a share" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_an_amount_needs_a_folder(folder: Path) -> None:
    result = run(folder, "--keep", 5)
    assert (result.exit_code, "--keep needs --keep-disagreeing" in result.stderr) == (2, True)


def test_one_member_cannot_disagree(photos: Path, tmp_path: Path, server: Server) -> None:
    server.members = 1
    for options in ([], ["--model", "E"]):
        result = run(photos, "--keep-disagreeing", tmp_path / "out", *options)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            "error: E has one member, which cannot disagree: choose an ensemble of several with --model\n"
        )
    assert server.requests == []
    assert not (tmp_path / "out").exists()


def test_a_server_without_default_needs_a_model(photos: Path, tmp_path: Path, server: Server) -> None:
    server.has_default = False
    result = run(photos, "--keep-disagreeing", tmp_path / "out")
    assert result.stderr == "error: the server has no default ensemble: choose one with --model (E, E)\n"
    assert run(photos, "--keep-disagreeing", tmp_path / "out", "--model", "E").exit_code == 0


def test_refuses_what_it_could_not_copy_before_classifying(
    folder: Path, tmp_path: Path, server: Server
) -> None:
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([folder / "notes.txt", "--keep-disagreeing", tmp_path / "out"], "notes.txt cannot be kept"),
        (["-", "--keep-disagreeing", tmp_path / "out"], "- cannot be kept"),
        ([folder, "--keep-disagreeing", folder / "out"], f"{folder}/out lies in {folder}, which is searched"),
        ([folder, "--keep-disagreeing", tmp_path / "file"], f"cannot keep images in {tmp_path}/file"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (1, ""), result.stderr
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert server.requests == []
