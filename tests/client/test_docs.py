"""Run the examples of docs/guides/using/client.md as a reader would, against the servers it describes."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from PIL import Image

from tests.integration.conftest import COSERVE, Serve, serve

__all__ = ["serve"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guides/using/client.md").read_text()


class Example(NamedTuple):
    section: str
    code: str
    output: str | None


def find_examples() -> Iterator[Example]:
    """Find each Python block, and the block of output that may follow it."""
    for part in PAGE.split("\n## ")[1:]:
        section = part.partition("\n")[0]
        for code, output in re.findall(r"^```python\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?", part, re.M | re.S):
            yield Example(section, code, output or None)


EXAMPLES = list(find_examples())


class Site(NamedTuple):
    """A folder with the files that the examples name, and where their servers really listen."""

    folder: Path
    api_key: str
    addresses: dict[str, str]


@pytest.fixture(scope="module")
def site(serve: Serve, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "photos" / "deep").mkdir(parents=True)
    picture = Image.open(next(image_folder.rglob("*.png"))).convert("RGB")
    for name in ("cat.jpg", "dog.png", "photos/a.jpg", "photos/deep/b.png"):
        picture.save(folder / name)
    for name in ("notes.txt", "photos/bad.png"):
        (folder / name).write_text("not an image")

    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("server", "client"):
        issued = authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
    create = [COSERVE, "keys", "create", "docs", "--file", folder / "keys"]
    created = subprocess.run(create, capture_output=True, text=True, check=True, timeout=60)

    (command,) = re.findall(r"^coserve serve --repository (.*)$", PAGE, re.M)
    repository, *options = shlex.split(command)
    plain = serve(ROOT / repository, *options)
    secured = serve(
        ROOT / repository,
        *options,
        api_keys_file=folder / "keys",
        tls_certificate=folder / "server.pem",
        tls_key=folder / "server.key",
        tls_client_authorities=folder / "ca.pem",
    )
    addresses = {"http://127.0.0.1:8000": plain.url, "https://127.0.0.1:8000": secured.url}
    return Site(folder, created.stdout.strip(), addresses)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.section)
def test_examples_run(
    example: Example, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(site.folder)
    monkeypatch.setenv("COSERVE_API_KEY", site.api_key)
    code = example.code
    for shown, real in site.addresses.items():
        code = code.replace(f'"{shown}"', f'"{real}"')
    exec(compile(code, f"client.md, {example.section}", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert printed
    assert example.output in (None, printed)


def test_every_section_has_an_example_and_no_example_is_overlooked() -> None:
    assert {example.section for example in EXAMPLES} == set(re.findall(r"^## (.*)$", PAGE, re.M))
    assert len(EXAMPLES) == PAGE.count("```python")
