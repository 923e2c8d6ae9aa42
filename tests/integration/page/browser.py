"""A real Chromium, and what its console says about the page."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Playwright, Route

from tests.integration.conftest import Server

ROOT = Path(__file__).parents[3]
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
REFUSED = "Failed to load resource: the server responded with a status of"
"""What Chromium writes about every call that the server refuses."""
UNCLEAR = ("<select", "<text")
"""Elements whose contrast axe cannot tell: they have an arrow as background, or lie over lines of a chart."""


def launch(playwright: Playwright) -> Browser:
    """Start Chromium; fail the test without one in CI, and skip it elsewhere."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        reason = "no Chromium, so THE PAGE IS NOT TESTED; run make browser as root, or install chromium"
        if os.environ.get("REQUIRE_CHROMIUM") or os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))


@contextmanager
def open_tab(browser: Browser) -> "Iterator[Tab]":
    """Open an empty tab, and check at the end that nothing went wrong in it."""
    context = browser.new_context(reduced_motion="reduce")
    # Other tests may have the cores.
    context.set_default_timeout(100_000)
    tab = Tab(context.new_page())
    yield tab
    context.close()
    tab.check()


@dataclass
class Tab:
    """The page of a server, opened in a browser.

    Attributes:
        faults: errors and warnings of the console, the Content-Security-Policy's too, and exceptions.
        refusals: calls that the server refused, as the console writes them.
        elsewhere: addresses that the page asked for at other servers.
    """

    page: Page
    faults: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def watch(self, server: Server) -> None:
        """Collect what goes wrong from now on, and let the page reach its own server alone."""

        def hear(kind: str, text: str) -> None:
            if kind in {"error", "warning"}:
                (self.refusals if text.startswith(REFUSED) else self.faults).append(text)

        def guard(route: Route) -> None:
            if route.request.url.startswith(server.url):
                route.continue_()
            else:
                self.elsewhere.append(route.request.url)
                route.abort()

        self.page.on("console", lambda message: hear(message.type, message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.route("**/*", guard)

    def check(self) -> None:
        """Check that nothing went wrong, and no call was refused unless the test has forgotten that."""
        assert self.faults == self.refusals == self.elsewhere == []

    def open(self, server: Server, view: str = "") -> Page:
        """Load the page."""
        self.watch(server)
        self.page.goto(f"{server.url}/{view}")
        return self.page

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def choose_example(self, label: str) -> None:
        """Click an example, and wait until its answer is drawn."""
        self.page.click(f"#examples img[alt$={label}]")
        self.wait_for_answer(label)

    def wait_for_answer(self, name: str) -> None:
        """Wait until the answer for a photograph is drawn; `name` is part of its file's name."""
        self.page.wait_for_selector(f"#preview[alt*='{name}']", state="attached")
        self.page.wait_for_selector("#answer[aria-busy=false] #classes svg")

    def until(self, condition: str) -> None:
        """Wait for a condition in JavaScript; Playwright's own way is eval, which the policy forbids."""
        for _ in range(1500):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"never true: {condition}")

    def race(self) -> None:
        """Run the race to its end."""
        self.page.click("#race-start:not(:disabled)")
        self.page.wait_for_selector("#race-start:not(:disabled)")
        self.page.wait_for_selector("#race svg")

    def rows(self, selector: str) -> list[list[str]]:
        """Return the cells of the tables in an element, folded or not."""
        script = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        found: list[list[str]] = self.page.eval_on_selector_all(f"{selector} tbody tr", script)
        return found

    def barriers(self, place: str = "html") -> list[str]:
        """Return what axe finds in a place, and texts whose contrast it cannot tell, but `UNCLEAR`."""
        # Buttons change their colours slowly.
        self.page.wait_for_timeout(300)
        found = Axe().run(self.page, context=place).response
        violations = [
            f"{one['id']}: {node['html'][:120]}" for one in found["violations"] for node in one["nodes"]
        ]
        unclear = [
            f"unclear: {node['html'][:120]}"
            for one in found["incomplete"]
            if one["id"] == "color-contrast"
            for node in one["nodes"]
            if not node["html"].startswith(UNCLEAR)
        ]
        return violations + unclear
