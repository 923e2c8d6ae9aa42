"""Writing results to files."""

import os
import stat
from pathlib import Path

import pytest

from coserve_bench.output import OutputError, check_writable, write_whole


def test_a_file_is_written_whole_through_links(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    link = tmp_path / "link"
    link.symlink_to(file)
    for text in ("first", "second"):
        check_writable(link)
        write_whole(link, text)
        assert file.read_text() == text
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, file]


def test_checking_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text("before")
    check_writable(file)
    check_writable(tmp_path / "another")
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "before"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(pipe)
        write_whole(pipe, "text")
        assert os.read(reader, 100) == b"text"
        assert stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("folder", "it is a folder"),
        ("nowhere/results.json", "No such file or directory"),
        ("file/results.json", "Not a directory"),
        ("x" * 255, "File name too long"),
        ("loop", "it is a link that leads to itself"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, place: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    for write in (check_writable, lambda file: write_whole(file, "text")):
        with pytest.raises(OutputError) as caught:
            write(tmp_path / place)
        assert str(caught.value).startswith(f"cannot write {tmp_path / place}: ")
        if write is check_writable:
            assert why in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
