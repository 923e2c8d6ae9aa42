"""Run the examples of docs/guides/using/python-training.md from top to bottom, on a tiny data set."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/guides/using/python-training.md"


def test_the_examples_run_and_print_what_the_page_shows(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").symlink_to(image_folder)
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text("utf-8")
    examples = list(re.finditer(r"^```python\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?", text, re.M | re.S))
    assert len(examples) == text.count("```python") == text.count("\n## ")
    for example in examples:
        code, output = example.groups()
        lines_before = text.count("\n", 0, example.start(1))
        exec(compile("\n" * lines_before + code, PAGE, "exec"), {})
        printed = capsys.readouterr().out
        assert printed
        assert output in (None, printed)
    assert (tmp_path / "runs/first/last.calibration.json").exists()
