"""The page with the shipped ensembles: ways to give a photograph, the answer, the live view."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route

from coserve_client import Client
from coserve_server.api.page import files
from tests.integration.conftest import Serve, Server
from tests.integration.page.browser import ROOT, Tab

EXAMPLES = Path(files.__file__).with_name("files") / "examples"
FROG = EXAMPLES / "frog-0016.jpg"
HORSE = EXAMPLES / "horse-0002.jpg"
MODEL = "wide_resnet10_4_s2"


@pytest.fixture(scope="module")
def server(serve: Serve) -> Server:
    return serve(ROOT / "model_repository", "--default-model", MODEL)


def test_an_answer_is_the_server_s_in_words_and_bars(server: Server, tab: Tab) -> None:
    tab.open(server)
    tab.choose_example("horse")
    with Client(server.url) as client:
        reply = client.classify(HORSE, top_k=10, member_predictions=True, coverage=0.95)
        model = client.model(MODEL)
    (result,) = reply.results
    best = result.predictions[0]
    assert tab.text("#headline").split("\n")[0] == best.label
    assert f"{100 * best.probability:.1f}% probable" in tab.text("#headline")
    assert result.member_predictions is not None
    assert result.prediction_set is not None
    members = list(result.member_predictions.values())
    for row, prediction in zip(tab.rows("#classes"), result.predictions, strict=True):
        own = [next(p for p in member if p.class_id == prediction.class_id) for member in members]
        assert row[0] == prediction.label
        assert row[1:] == [f"{100 * p.probability:.1f}%" for p in (prediction, *own)]
    words = tab.text("#words")
    agree = len({member[0].class_id for member in members}) == 1
    assert words.startswith("Both members say" if agree else "The members disagree:")
    assert f"Disagreement: {result.uncertainty.disagreement:.3f} nats, of at most 0.69" in words
    for prediction in result.prediction_set:
        assert prediction.label in words
    assert f"{100 * (reply.measured_top1 or 0):.1f}% of 5,000 test photographs" in words
    assert tab.text("#model-text").startswith(f"2 members, {len(model.labels)} classes")
    # A bar for each class, and a tick for each member's opinion of it.
    assert tab.page.locator("#classes svg g[aria-hidden=true], #classes svg rect").count() >= 10
    assert tab.page.locator("#classes svg line[x1][stroke^='var(--m']").count() == 20


def drop(page: Page, paths: list[Path], event: str) -> None:
    """Let the browser believe that files were dropped or pasted."""
    sent = [{"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()} for path in paths]
    page.evaluate(
        """async ([files, event]) => {
            const data = new DataTransfer();
            for (const { name, data: text } of files) {
                const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
                data.items.add(new File([bytes], name, { type: "image/jpeg" }));
            }
            const options = { bubbles: true, cancelable: true };
            document.body.dispatchEvent(event === "paste"
                ? new ClipboardEvent("paste", { ...options, clipboardData: data })
                : new DragEvent("drop", { ...options, dataTransfer: data }));
        }""",
        [sent, event],
    )


GIVE: dict[str, Callable[[Page], None]] = {
    "choose": lambda page: page.set_input_files("#file", FROG),
    "drop": lambda page: drop(page, [FROG], "drop"),
    "paste": lambda page: drop(page, [FROG], "paste"),
}


@pytest.mark.parametrize("way", GIVE)
def test_a_photograph_may_come_in_any_way(server: Server, tab: Tab, way: str) -> None:
    page = tab.open(server)
    page.wait_for_selector("#model option", state="attached")
    GIVE[way](page)
    tab.wait_for_answer(FROG.name)
    assert tab.text("#headline").startswith("frog")
    assert page.is_hidden("#trouble")


def test_a_picture_of_the_webcam_is_classified(server: Server, tab: Tab) -> None:
    page = tab.open(server)
    page.click("#webcam-open")
    tab.until("document.querySelector('#webcam-video').videoWidth > 0")
    page.click("#webcam-take")
    tab.wait_for_answer("webcam.jpg")
    page.click("#webcam-close")
    assert page.is_hidden("#webcam-video")


def test_what_is_no_single_file_is_not_dropped_in_silence(server: Server, tab: Tab) -> None:
    page = tab.open(server)
    page.wait_for_selector("#model option", state="attached")
    drop(page, [], "drop")
    assert "That was not a file" in tab.text("#trouble")
    drop(page, [], "paste")
    assert "The clipboard holds no picture" in tab.text("#trouble")
    drop(page, [FROG, HORSE], "drop")
    tab.wait_for_answer(FROG.name)
    assert f"one photograph at a time: this is {FROG.name}" in tab.text("#trouble")


def test_the_lines_for_a_program_give_the_same_answer(server: Server, tab: Tab, tmp_path: Path) -> None:
    tab.open(server)
    tab.choose_example("frog")
    (tmp_path / FROG.name).write_bytes(FROG.read_bytes())
    curl, python = tab.page.locator("#code pre").all_inner_texts()
    told = subprocess.run(curl, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    (result,) = json.loads(told.stdout)["results"]
    assert result["predictions"][0]["label"] == "frog"
    assert len(result["member_predictions"]) == 2
    assert result["prediction_set"]
    printed = subprocess.run(
        [sys.executable, "-c", python], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert printed.stdout == "frog False\n"


def test_the_milliseconds_add_up(server: Server, tab: Tab) -> None:
    tab.open(server)
    tab.choose_example("ship")
    rows = tab.rows("#time")
    steps = ["decode", "preprocess", "queue", "inference", "combine", "other", "outside"]
    assert [row[0] for row in rows] == steps
    inside = sum(float(row[1].split()[0]) for row in rows[:-1])
    total = float(tab.text("#time p").split("took ")[1].split()[0])
    assert inside == pytest.approx(total, rel=0.1, abs=0.6)


def test_the_live_view_counts_what_the_server_does(server: Server, tab: Tab) -> None:
    page = tab.open(server, "#live")
    page.wait_for_selector("#live-charts svg")
    name = "wide_resnet16_4_s2"

    def images() -> int:
        return next(int(row[2]) for row in tab.rows("#live-members") if row[0] == name)

    before = images()
    with Client(server.url) as client:
        client.classify([FROG, HORSE, FROG], model=name)
    while images() != before + 3:
        page.wait_for_timeout(50)
    row = next(row for row in tab.rows("#live-members") if row[0] == name)
    assert row[1] == "ready: 2 of 2 members, needs 2"
    assert row[3].startswith("overlap ")
    assert "with onnxruntime: 6 of 6 ensembles ready" in tab.text("#live-text")
    labels = page.eval_on_selector_all("#live-charts svg", "all => all.map(one => one.ariaLabel)")
    assert [label.split(" over")[0] for label in labels] == [
        "Throughput",
        "Latency",
        "Queue",
        "Requests in progress",
    ]
    assert not any("undefined" in label or "NaN" in label for label in labels)


METRICS = r"""
# HELP d_seconds Time
d_seconds_bucket{le="0.1",model="a"} 2.0
d_seconds_bucket{le="0.2",model="a"} 6.0
d_seconds_bucket{le="+Inf",model="a"} 8.0
d_seconds_bucket{le="0.1",model="b"} 2.0
d_seconds_bucket{le="0.2",model="b"} 2.0
d_seconds_bucket{le="+Inf",model="b"} 2.0
d_seconds_sum{model="a"} 4.0
d_seconds_count{model="a"} 8.0
n_total{model="a \"}\\ b",kind="x"} 3.0
n_total{model="a",kind="x"} 4e0
"""


def test_metrics_are_read_as_prometheus_reads_them(server: Server, tab: Tab) -> None:
    page = tab.open(server)
    scripts = page.locator("script[type=module]").get_attribute("src")
    assert scripts is not None
    assert page.evaluate(
        """async ([where, text]) => {
            const { parse, sum, mean, quantile } = await import(where);
            const [none, all] = [new Map(), parse(text)];
            return [
                sum(all, "n_total"), sum(all, "n_total", { model: 'a "}\\\\ b' }), sum(all, "other"),
                mean(none, all, "d_seconds", { model: "a" }),
                quantile(none, all, "d_seconds", 0.5, { model: "a" }), quantile(none, all, "d_seconds", 0.1),
                quantile(none, all, "d_seconds", 0.99), String(quantile(all, all, "d_seconds", 0.5)),
            ];
        }""",
        [scripts.replace("main.js", "exposition.js"), METRICS],
    ) == pytest.approx([7, 3, 0, 0.5, 0.15, 0.025, 0.2, "NaN"])


def test_the_keyboard_is_enough(server: Server, tab: Tab) -> None:
    page = tab.open(server)
    page.wait_for_selector("#race-start:not(:disabled)")
    reached = []
    while "ship" not in (reached[-1:] or [""])[0]:
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.firstChild?.alt || ''")
        )
        assert len(reached) < 20
        visible = "getComputedStyle(document.activeElement)"
        assert page.evaluate(f"{visible}.outlineStyle !== 'none' || {visible}.boxShadow !== 'none'")
    assert reached[0] == "tab-try"
    assert "file" in reached
    page.keyboard.press("Enter")
    tab.wait_for_answer("ship")
    page.focus("#tab-try")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#live")
    assert page.is_hidden("#try")
    page.keyboard.press("ArrowLeft")
    assert page.is_visible("#try")
    # The button that starts the race is disabled meanwhile, which loses the place on the page.
    for button, other in (("race-start", "race-stop"), ("race-stop", "race-start")):
        page.focus(f"#{button}")
        page.keyboard.press("Enter")
        tab.until(f"document.activeElement.id === '{other}'")


def test_an_answer_does_not_wait_for_the_library_that_draws(server: Server, tab: Tab) -> None:
    page = tab.open(server)
    held = []
    page.route("**/vendor/d3.min.js", lambda route: held.append(route))
    page.click("#examples button")
    page.wait_for_selector("#headline strong")
    assert tab.text("#headline").startswith("automobile")
    assert page.locator("#classes svg").count() == 0
    page.set_viewport_size({"width": 360, "height": 800})
    lines = "[...document.querySelectorAll('#words p')]"
    assert page.evaluate(f"{lines}.length > 0 && {lines}.every(one => one.scrollWidth <= one.clientWidth)")
    tab.until("performance.getEntriesByType('resource').some(one => one.name.endsWith('charts.js'))")
    while not held:
        page.wait_for_timeout(20)
    held[0].continue_()
    page.wait_for_selector("#classes svg")


def test_a_slow_server_is_waited_for(server: Server, tab: Tab) -> None:
    tab.watch(server)
    held: list[Route] = []
    tab.page.route("**/v1/models", lambda route: held.append(route))
    tab.page.goto(server.url)
    assert tab.text("#model-text") == "Loading…"
    tab.until("document.querySelectorAll('#examples img').length === 6")
    while not held:
        tab.page.wait_for_timeout(20)
    held[0].continue_()
    tab.page.wait_for_selector("#race-start:not(:disabled)")
    assert tab.text("#model-text").startswith("2 members, ")
