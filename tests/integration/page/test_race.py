"""The race, accuracy against latency, and what keeps people from using the page, after one race."""

from collections.abc import Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser

from coserve_client import Client
from tests.integration.conftest import Serve, Server
from tests.integration.page.browser import ROOT, Tab, open_tab

FAMILY = [f"wide_resnet10_4_s{size}" for size in (1, 2, 4)]
BARS = "#race svg [fill^='var(--m']"
COLLISIONS = """charts => charts.flatMap((chart) => {
    const edge = chart.getBoundingClientRect();
    const all = [...chart.querySelectorAll("text")];
    const texts = all.map((one) => [one.textContent, one.getBoundingClientRect()]);
    const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
    return texts.flatMap(([name, box], index) => [
        ...(box.right > edge.right + 1 || box.bottom > edge.bottom + 1 ? [`${name} is cut off`] : []),
        ...texts.slice(index + 1).filter(([, one]) => meet(box, one)).map(([other]) => `${name} × ${other}`),
    ]);
})"""
"""Texts in charts that overlap, or that a chart's edge cuts off."""


@pytest.fixture(scope="module")
def server(serve: Serve) -> Server:
    return serve(ROOT / "model_repository", "--default-model", FAMILY[1])


@pytest.fixture(scope="module")
def tab(browser: Browser, server: Server) -> Iterator[Tab]:
    """A tab with an answer, in which the race is over."""
    with open_tab(browser) as tab:
        tab.open(server)
        tab.choose_example("cat")
        tab.race()
        yield tab


def test_members_race_on_one_clock(tab: Tab) -> None:
    ensembles = tab.rows("#race .wide:nth-of-type(1)")
    members = tab.rows("#race .wide:nth-of-type(2)")
    assert [row[0] for row in ensembles] == FAMILY
    # On a slow machine the race ends before the twentieth request.
    assert all(0 < int(row[4]) <= 20 and row[5] == "0" for row in ensembles)
    assert [row[0] for row in members] == [f"{one}_member{i}" for one in FAMILY for i in range(int(one[-1]))]
    assert tab.page.locator(BARS).locator("visible=true").count() == 7
    line = tab.page.locator("#race svg [stroke-dasharray='5,3']")
    assert line.count() == 1
    # The line runs under the times that it crosses, and no text is invisible.
    over = "[...line.ownerSVGElement.querySelectorAll('text')].at(-1)"
    assert line.evaluate(f"line => line.compareDocumentPosition({over}) & Node.DOCUMENT_POSITION_FOLLOWING")
    fills = "texts => texts.map((text) => getComputedStyle(text).fill)"
    assert "none" not in tab.page.eval_on_selector_all("#race svg text", fills)
    took = f"The undivided network, the dashed line, took {ensembles[0][1]};"
    assert tab.text("#race-result").startswith(took)
    for name, median, *_, overlap, _, _ in ensembles[1:]:
        assert f"S={name[-1]} took {median}, " in tab.text("#race-result")
        assert f"{name}: {median}, overlap {overlap}" in (tab.page.text_content("#race svg") or "")


def test_the_median_request_is_drawn(tab: Tab) -> None:
    ends: dict[str, list[float]] = {}
    for name, start, end, _ in tab.rows("#race .wide:nth-of-type(2)"):
        assert float(start.split()[0]) < float(end.split()[0])
        ends.setdefault(name.rpartition("_")[0], []).append(float(end.split()[0]))
    for name, median, middle, *_ in tab.rows("#race .wide:nth-of-type(1)"):
        assert f"{max(ends[name])}" == f"{float(median.split()[0])}"
        low, high = (float(part.split()[0]) for part in middle.split("–"))
        assert low <= max(ends[name]) <= high


def test_accuracy_is_shown_for_every_subset_of_members(server: Server, tab: Tab) -> None:
    rows = {row[0]: row[1] for row in tab.rows("#accuracy")}
    with Client(server.url) as client:
        accuracy = client.model(FAMILY[2]).provenance["accuracy"]
    expected = {FAMILY[2]: accuracy["ensemble"]["top1"]} | {
        f"{FAMILY[2]}, only member {', '.join(map(str, subset['members']))}": subset["top1"]
        for subset in accuracy["subsets"]
        if len(subset["members"]) < 4
    }
    assert len(expected) == 15
    shown = {name: f"{100 * top1:.1f}%" for name, top1 in expected.items()}
    assert {name: rows[name] for name in expected} == shown
    assert tab.page.locator("#accuracy svg circle").count() == 3 + 2 + 14


def test_a_replay_shows_more_and_more_of_the_race(tab: Tab) -> None:
    ends = f"""Math.max(...[...document.querySelectorAll("{BARS}")].map((bar) => {{
        const box = bar.getBBox();
        return box.x + box.width;
    }}))"""
    whole = tab.page.evaluate(ends)
    tab.page.click("#race-replay")
    tab.until(f"{ends} < {whole} - 5")
    partly = tab.page.evaluate(ends)
    tab.until(f"{ends} > {partly} + 5")
    assert "times slower" in tab.text("#race-replay")
    tab.until(f"{ends} === {whole}")


@pytest.mark.parametrize(("view", "scheme"), [("try", "light"), ("try", "dark"), ("live", "dark")])
def test_nothing_bars_anyone(tab: Tab, view: str, scheme: Literal["light", "dark"]) -> None:
    tab.page.emulate_media(color_scheme=scheme)
    tab.page.click(f"#tab-{view}")
    tab.page.wait_for_selector(f"#{view} svg")
    assert tab.barriers() == []


@pytest.mark.parametrize("view", ["try", "live"])
def test_phones_show_all_without_scrolling_sideways(tab: Tab, view: str) -> None:
    tab.page.click(f"#tab-{view}")
    for width in (360, 1200):
        tab.page.set_viewport_size({"width": width, "height": 800})
        tab.until(
            f"[...document.querySelectorAll('#{view} figure svg')].every(one => one.clientWidth < {width})"
        )
        assert tab.page.evaluate("document.documentElement.scrollWidth") == width
        assert tab.page.eval_on_selector_all(f"#{view} figure:not(#accuracy *) svg", COLLISIONS) == []
