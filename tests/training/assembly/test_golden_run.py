import json
from pathlib import Path

import pytest

from tests.training.assembly.golden_run import FILE, golden_losses


def test_twenty_steps_have_the_losses_that_are_stored(tmp_path: Path) -> None:
    """Notice a change of data order, views, networks, loss, schedule or optimiser, intended or not.

    The tolerance is several times what instruction sets from SSE to AVX-512 and numbers of threads change,
    and less than what a tenth more of any coefficient changes.
    """
    stored = json.loads(FILE.read_text())
    losses = golden_losses(tmp_path)
    assert losses["training"] == pytest.approx(stored["training"], rel=3e-4)
    assert losses["test"] == pytest.approx(stored["test"], rel=1e-4)
