"""What the page says if not all members were needed."""

from pathlib import Path

import pytest

from tests.integration.conftest import Serve, Server
from tests.integration.page.browser import Tab
from tests.server.onnx_repository import write_repository

PROVENANCE = {
    # Any image exceeds it: its likeliest of four classes has at least a quarter.
    "calibration": {"early_stopping": [{"loss": 0.0, "confidence": 0.2, "top1": 0.8}]},
    "accuracy": {"ensemble": {"top1": 0.9}, "images": 200, "split": "test"},
}


@pytest.fixture
def server(serve: Serve, tmp_path: Path) -> Server:
    write_repository(tmp_path, "quad", members=4, provenance=PROVENANCE)
    return serve(tmp_path, "--early-stop", "always")


def test_members_that_were_not_needed_are_no_fault(server: Server, tab: Tab) -> None:
    page = tab.open(server)
    tab.choose_example("cat")
    (heads,) = page.eval_on_selector_all(
        "#classes thead tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert heads[:2] == ["class", "ensemble"]
    (member,) = heads[2:]
    said = f"1 of 4 members answered with enough confidence: {member}"
    assert tab.text("#headline").split("\n")[-1] == said
    assert page.is_hidden("#missing")
    accuracy = "With early stopping, the ensemble labelled 80.0% of 200 test photographs correctly."
    assert tab.text("#words") == accuracy
    assert tab.barriers("#answer") == []
    # The race compares members that all run.
    tab.race()
    members = tab.rows("#race .wide:nth-of-type(2)")
    assert len(members) == 4
    assert all(row[3].startswith("cpu:") for row in members)
    assert page.locator("#race .failed").count() == 0
