"""What the script says to wrong arguments."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--network", "vgg16"), "error: no ensemble of vgg16; there are wide_resnet10_4, wide_resnet16_4"),
        (("--repository", "absent"), "absent is not a folder"),
        (("--data", "absent.zip"), "absent.zip"),
    ],
)
def test_a_wrong_argument_gives_one_line(arguments: tuple[str, ...], text: str) -> None:
    command = [sys.executable, "benchmarks/averaged.py", "--data", "tests", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert text in done.stderr.splitlines()[-1]
