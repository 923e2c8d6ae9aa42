"""Links between pages: every file and heading that a Markdown file names exists."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def find_links(page: Path) -> Iterator[str]:
    """Find where a page's links and images lead, outside of code; addresses of other sites are left out."""
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", CODE.sub("``", page.read_text("utf-8"))):
        if not re.match(r"[a-z]+:", target):
            yield target


def find_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in find_links(page):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in find_anchors(file), f"{page.name} links to {target}"


def test_code_and_settings_name_pages_that_exist() -> None:
    """Docstrings, comments, messages and settings name pages by their path from the root."""
    folders = ("bench", "benchmarks", "cli", "client", "deploy", "export", "images", "local_triton", "server")
    files = [file for folder in (*folders, "training") for file in (ROOT / folder).rglob("*")]
    files += [*ROOT.glob("*.yml"), *(ROOT / name for name in ("Makefile", "noxfile.py", ".env.example"))]
    suffixes = {".py", ".yml", ".yaml", ".toml", ".json", ".conf", ""}
    named = {
        (file.name, name)
        for file in files
        if file.is_file() and (file.suffix in suffixes or file.name == ".env.example")
        for name in re.findall(r"(?<![\w./-])docs/[\w/-]+\.md", file.read_text("utf-8", errors="replace"))
    }
    assert len(named) > 20
    assert [(file, name) for file, name in named if not (ROOT / name).exists()] == []
