"""What the page says of members that fail or are late, missing keys, bad files and a lost server."""

from pathlib import Path

import pytest

from coserve_server.security.keys import create_key
from tests.integration.conftest import Serve, Server
from tests.integration.page.browser import Tab
from tests.server.onnx_repository import FAILS, HANGS, write_repository

KINSHIP = {"network": "tiny", "dataset": "test"}
ACCURACY = {"ensemble": {"top1": 0.9}, "members": [{"top1": 0.8}, {"top1": 0.7}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder, "alone", members=1, provenance=KINSHIP)
    write_repository(folder, "fails", faults={1: FAILS}, provenance=KINSHIP | {"accuracy": ACCURACY})
    write_repository(folder, "hangs", faults={0: HANGS})
    return folder


@pytest.fixture(scope="module")
def server(serve: Serve, folder: Path) -> Server:
    return serve(folder, "--default-model", "fails", "--min-members", "1", "--deadline-ms", "3000")


def test_a_member_that_failed_is_red(server: Server, tab: Tab) -> None:
    page = tab.open(server)
    tab.choose_example("frog")
    assert "degraded: 1 of 2 members answered" in tab.text("#headline .failed")
    assert tab.text("#missing").startswith("member1: ")
    assert "This member labelled 80.0% correctly." in tab.text("#words")
    red = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--failed')")
    shown = page.evaluate("getComputedStyle(document.querySelector('#missing li')).color")
    assert [int(red[i : i + 2], 16) for i in (1, 3, 5)] == [int(part) for part in shown[4:-1].split(",")]
    # The members' ticks: none for the one that failed.
    assert {row[0] for row in tab.rows("#classes")} == {"cat", "dog", "frog", "ship"}
    assert all(len(row) == 3 for row in tab.rows("#classes"))
    tab.race()
    alone, fails = tab.rows("#race .wide:nth-of-type(1)")
    requests = fails[4]
    assert (alone[0], alone[5]) == ("alone", "0")
    assert (fails[0], fails[5]) == ("fails", requests)
    assert 0 < int(requests) <= 20
    assert tab.text("#race .failed").startswith("fails, member1: ")
    drawn = page.text_content("#race svg") or ""
    assert f"degraded in {requests} of {requests}" in drawn
    assert "✕ failed" in drawn
    assert "S=2 took " in tab.text("#race-result")
    assert tab.text("#race-result").endswith(f"and lacked members in {requests} of {requests} answers.")
    # The accuracy of the member that answered, not of the ensemble.
    assert [row[:2] for row in tab.rows("#accuracy")] == [["fails, degraded", "80.0%"]]
    ticks = tab.page.locator("#accuracy svg text").all_text_contents()
    assert all(len(tick) <= 5 for tick in ticks if tick[0].isdigit())
    assert tab.barriers("#answer") == []
    page.click("#tab-live")
    page.wait_for_selector("#live-members tr.failed")
    rows = {row[0]: row[4] for row in tab.rows("#live-members") if row[0] == "fails" or "×" in row[4]}
    assert rows["fails"].endswith(" degraded")
    assert rows["— member1"].endswith(" × failed")


def test_a_late_member_is_red(server: Server, tab: Tab) -> None:
    page = tab.open(server)
    page.select_option("#model", "hangs")
    tab.choose_example("cat")
    assert "degraded: 1 of 2 members answered" in tab.text("#headline .failed")
    assert "member0: no answer before the deadline" in tab.text("#missing")


def test_a_file_that_is_no_photograph_is_explained(server: Server, tab: Tab, tmp_path: Path) -> None:
    page = tab.open(server)
    page.select_option("#model", "alone")
    notes = tmp_path / "notes.txt"
    notes.write_text("not a photograph")
    page.set_input_files("#file", notes)
    page.wait_for_selector("#trouble:visible")
    assert tab.text("#trouble").startswith(
        "The server cannot read this file as a photograph. not an image in a supported format (JPEG, PNG"
    )
    assert page.is_hidden("#preview")
    assert tab.text("#headline") == "The server cannot read this file as a photograph."
    assert len(tab.refusals) == 1
    tab.refusals.clear()
    tab.choose_example("ship")
    assert page.is_hidden("#trouble")


def test_too_few_members_are_explained(serve: Serve, folder: Path, tab: Tab) -> None:
    strict = serve(folder, "--default-model", "fails")
    page = tab.open(strict)
    page.click("#examples button")
    page.wait_for_selector("#trouble:visible")
    assert tab.text("#trouble").startswith("Too few members gave an answer. ")
    assert "fails_member1" in tab.text("#trouble")
    tab.refusals.clear()
    page.click("#race-start:not(:disabled)")
    page.wait_for_selector("#race svg")
    assert tab.text("#race-result .failed").startswith("fails: Too few members gave an answer.")
    assert [row[0] for row in tab.rows("#race .wide:nth-of-type(1)")] == ["alone"]
    tab.refusals.clear()
    strict.stop()
    page.click("#examples button")
    page.wait_for_selector(
        "#trouble:has-text('The server does not answer.'), #trouble:has-text('did not load')"
    )
    assert all("ERR_CONNECTION_REFUSED" in fault for fault in tab.faults)
    tab.faults.clear()


def test_a_key_is_asked_for_and_kept_nowhere(serve: Serve, folder: Path, tab: Tab, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = create_key(file, "lab", "infer")
    server = serve(folder, "--default-model", "alone", "--api-keys-file", str(file))
    page = tab.open(server)
    page.wait_for_selector("#key:visible")
    assert tab.text("#trouble") == "The server needs an API key."
    assert tab.barriers("#key-form") == []
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#trouble:has-text('does not know this key')")
    tab.refusals.clear()
    page.fill("#key", key)
    page.click("#key-form button")
    page.wait_for_selector("#model option", state="attached")
    assert page.is_hidden("#trouble")
    tab.choose_example("cat")
    curl, python = page.locator("#code pre").all_inner_texts()
    assert "-H 'X-API-Key: YOUR_KEY'" in curl
    assert 'api_key="YOUR_KEY"' in python
    assert key not in page.content()
    page.click("#tab-live")
    page.wait_for_selector("#live-members tr")
    kept = "[localStorage.length, sessionStorage.length, document.cookie, location.href]"
    assert page.evaluate(kept) == [0, 0, "", f"{server.url}/#live"]
    assert page.evaluate("indexedDB.databases().then(all => all.length)") == 0
    page.reload()
    page.wait_for_selector("#key:visible")
    assert page.input_value("#key") == ""
    page.fill("#key", key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#live-members tr")
    assert page.is_hidden("#trouble")
    tab.refusals.clear()
