"""Make the pages of the site that come from the code; MkDocs calls this as a hook, see mkdocs.yml.

- the command line from the help of every command
- the operations of the HTTP API from its OpenAPI description
- the Python API from the names that each package exports; mkdocstrings reads their docstrings

Files of the repository that pages link to are published with the site.
"""

import asyncio
import json
import posixpath
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "training": ("coserve_training", "Divide, train, evaluate and calibrate"),
    "export": ("coserve_export", "Export to a model repository"),
    "server": ("coserve_server", "Serve from a program"),
    "client": ("coserve_client", "Ask a server"),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the repository's files that pages link to."""
    api = describe_api()
    pages = {
        "reference/command-line.md": "\n".join(command_line()),
        "reference/operations.md": "\n".join(operations(api)),
        "reference/openapi.json": json.dumps(api, indent=1),
    }
    for name, (package, purpose) in PACKAGES.items():
        pages[f"reference/python/{name}.md"] = python_page(package, purpose)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    linked = {path for file in files.documentation_pages() for path in outside(file)}
    for path in sorted(linked):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links out of docs/ to the published copies; a folder's link becomes its path."""
    folder = posixpath.dirname(page.file.src_uri)

    def turn(link: re.Match[str]) -> str:
        path = target(page.file.src_uri, link[2])
        if path is None:
            return link[0]
        if (ROOT / path).is_dir():
            return f"{link[1]} (`{path}/`)"
        return f"[{link[1]}]({posixpath.relpath(f'files/{path}', folder)})"

    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", turn, markdown)


def outside(page: File) -> Iterator[str]:
    """Yield the files outside docs/ that a page links to."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.content_string):
        path = target(page.src_uri, link)
        if path is not None and (ROOT / path).is_file():
            yield path


def target(page: str, link: str) -> str | None:
    """Return where a page's link leads outside docs/, from the repository's root; otherwise None."""
    if re.match(r"[a-z]+:|#", link):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link.partition("#")[0]))
    return None if path == "docs" or path.startswith("docs/") else path


def command_line() -> Iterator[str]:
    """Yield a page with the help of every command."""
    from coserve_cli.main import VERBS, Modules, app

    yield "# Command line\n"
    yield "Each section is what `coserve COMMAND --help` prints.\n"
    for verb in VERBS:
        commands = getattr(Modules()[verb], "commands", {})
        for words in [[verb], *([verb, name] for name in commands)]:
            shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"})
            yield f"## coserve {' '.join(words)}\n\n```\n{shown.stdout.strip()}\n```\n"


def describe_api() -> dict[str, Any]:
    """Return the OpenAPI description of a server of the shipped ensembles."""
    from coserve_server import Settings, open_app

    async def describe() -> dict[str, Any]:
        async with open_app(Settings(repository=ROOT / "model_repository")) as app:
            return app.openapi()

    return asyncio.run(describe())


def operations(api: dict[str, Any]) -> Iterator[str]:
    """Yield a page with every operation: parameters, body and responses."""
    yield "# HTTP operations\n"
    yield (
        "What the server's own description says ([openapi.json](openapi.json)); a running server has it at "
        "`/openapi.json`, and pages to try it at `/docs`. The guide is [HTTP API](http-api.md).\n"
    )
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            yield f"## {method.upper()} {path}\n"
            yield f"{operation.get('summary', '')}\n"
            yield f"{operation.get('description', '')}\n"
            if parameters := operation.get("parameters"):
                yield "| parameter | in | required | meaning |\n| --- | --- | --- | --- |"
                for one in parameters:
                    meaning = one.get("description", "").replace("\n", " ")
                    required = "yes" if one.get("required") else ""
                    yield f"| `{one['name']}` | {one['in']} | {required} | {meaning} |"
                yield ""
            if body := operation.get("requestBody"):
                yield f"Body: {', '.join(f'`{kind}`' for kind in body['content'])}\n"
            yield "| status | meaning | content |\n| --- | --- | --- |"
            for status, response in operation["responses"].items():
                meaning = response["description"].replace("\n", " ")
                kinds = ", ".join(f"`{kind}`" for kind in response.get("content", ()))
                yield f"| {status} | {meaning} | {kinds} |"
            yield ""


def python_page(package: str, purpose: str) -> str:
    """Return a page for mkdocstrings with every name that a package exports."""
    names = import_module(package).__all__
    return "\n".join([f"# {package}\n", f"{purpose}.\n", *(f"::: {package}.{name}\n" for name in names)])
