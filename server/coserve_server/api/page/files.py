"""The page's files, which browsers may keep for ever: their address changes with their content."""

import hashlib
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

_FOLDER = Path(__file__).with_name("files")
_HTML = "index.html"
_PLACE = "{{files}}"
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".LICENSE": "text/plain",
    ".md": "text/markdown",
}
"""Media types; those of the module `mimetypes` depend on the machine."""


@dataclass(frozen=True)
class Files:
    """What a browser loads.

    Attributes:
        digest: part of every file's address, made from the content of all of them.
        contents: bytes and media type by path, such as `scripts/main.js`.
    """

    digest: str
    contents: dict[str, tuple[bytes, str]]

    def write_html(self, root_path: str) -> str:
        """Return the page itself.

        Args:
            root_path: path prefix of the application, without a slash at its end.
        """
        html = self.contents[_HTML][0].decode()
        return html.replace(_PLACE, escape(f"{root_path}/page/{self.digest}"))


@cache
def read_files() -> Files:
    """Read all files of the page, about 0.6 MB."""
    names = {
        path.relative_to(_FOLDER).as_posix(): path
        for path in sorted(_FOLDER.rglob("*"))
        if path.suffix in _TYPES
    }
    contents = {name: (path.read_bytes(), _TYPES[path.suffix]) for name, path in names.items()}
    digest = hashlib.sha256()
    for name, (content, _) in contents.items():
        digest.update(b"%d %b %d " % (len(name), name.encode(), len(content)) + content)
    return Files(digest.hexdigest()[:16], contents)
