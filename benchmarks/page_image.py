"""Take the picture of the page in docs/images/page.png, after one race in a real Chromium.

    python benchmarks/page_image.py

It starts a server of its own with the shipped ensembles. Run it on an idle machine, since the picture shows
the race; it prints what the page says of it.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 1200
"""Of the page, in pixels."""


def main() -> None:
    """Start the server, take the picture, and stop the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--model", default="wide_resnet16_4_s2")
    parser.add_argument("--example", default="horse", help="label of the example that is classified")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images/page.png")
    arguments = parser.parse_args()
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        parser.exit(1, "error: there is no Chromium; install it with make browser\n")
    with serve(arguments.repository, arguments.model) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        # Without a replay, the race is drawn as a whole at once.
        page = browser.new_page(
            color_scheme="dark", reduced_motion="reduce", viewport={"width": WIDTH, "height": 900}
        )
        page.goto(url)
        print(take(page, arguments.example, arguments.output))
        browser.close()


@contextmanager
def serve(repository: Path, model: str) -> Iterator[str]:
    """Run a server on a free port, and yield its address.

    Raises:
        RuntimeError: the server did not start; its error is on stderr.
    """
    options = ["--repository", str(repository), "--default-model", model, "--port", "0"]
    command = [str(Path(sys.executable).with_name("coserve")), "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().removeprefix("Coserve at ").partition(" ")[0].strip()
        try:
            if not address:
                raise RuntimeError("the server did not start")
            yield address
        finally:
            server.terminate()


def take(page: Page, example: str, output: Path) -> str:
    """Classify an example, run a race, write their picture, and return what the page says of the race."""
    page.click(f"#examples img[alt$={example}]")
    page.wait_for_selector("#answer[aria-busy=false] #classes svg")
    page.click("#race-start:not(:disabled)")
    page.wait_for_selector("#race svg")
    page.wait_for_selector("#race-start:not(:disabled)")
    # Nothing is hovered over or focused.
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    bottom = page.evaluate(
        "document.querySelector('section:has(#race)').getBoundingClientRect().bottom + scrollY"
    )
    page.screenshot(path=output, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": bottom + 20})
    return page.inner_text("#race-result")


if __name__ == "__main__":
    main()
