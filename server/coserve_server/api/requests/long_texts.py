"""Reads the long texts of JSON, which are image files in base64, in pieces.

A JSON parser holds the GIL until it is done, and so stops the event loop even from a thread. Long texts are
therefore cut out of the request first.
"""

import secrets
from collections.abc import Iterator

from pydantic_core import from_json

from coserve_server.errors import BadBodyError, BodyTooLargeError

MIN_BYTES = 2**14
"""Shorter texts stay where they are."""
SPARE_VALUES = 1000
"""Values that a JSON body may have in addition to its images or numbers."""
_PIECE_BYTES = 2**18
_ESCAPE_BYTES = 6
"""Length of the longest escape, such as `\\u002b`."""
_MAX_SPACES = 100
_MAX_BACKSLASHES = 1000
_SPACE = b" \t\r\n"


class LongTexts:
    """The long texts in a request's arrays, and the request without them.

    Attributes:
        rest: the JSON with a placeholder for each of them.
    """

    def __init__(self, body: bytes, max_images: int) -> None:
        """Cut the texts out.

        Raises:
            BadBodyError: a text has no end.
            BodyTooLargeError: there are far more texts than a request of `max_images` needs.
        """
        # Nobody can know it, and so send it instead of an image.
        self._token = secrets.token_hex(16)
        self._texts: dict[str, memoryview] = {}
        # Each value may have a key, and each of both has two quotes.
        self._quotes_left = 4 * (max_images + SPARE_VALUES)
        self._max_images = max_images
        self.rest = b"".join(self._cut(body)) if len(body) > MIN_BYTES else body

    def read(self, text: str) -> Iterator[str]:
        """Yield the pieces of a text of the request, whether or not it was cut out.

        Raises:
            BadBodyError: the text is not JSON.
        """
        written = self._texts.get(text)
        if written is None:
            for begin in range(0, len(text), _PIECE_BYTES):
                yield text[begin : begin + _PIECE_BYTES]
        else:
            yield from _unescape(written)

    def _cut(self, body: bytes) -> Iterator[bytes]:
        begin = 0
        opening = self._find_quote(body, 0)
        while opening >= 0:
            closing = self._find_closing(body, opening + 1)
            if closing - opening > MIN_BYTES and _is_element(body, opening, closing):
                name = f"{self._token}{len(self._texts)}"
                self._texts[name] = memoryview(body)[opening + 1 : closing]
                yield body[begin : opening + 1]
                yield name.encode()
                begin = closing
            opening = self._find_quote(body, closing + 1)
        yield body[begin:]

    def _find_closing(self, body: bytes, begin: int) -> int:
        """Return where the text that begins there ends."""
        while (quote := self._find_quote(body, begin)) >= 0:
            before = body[max(begin, quote - _MAX_BACKSLASHES) : quote]
            backslashes = len(before) - len(before.rstrip(b"\\"))
            if backslashes == _MAX_BACKSLASHES:
                raise BadBodyError(f"the JSON body has {_MAX_BACKSLASHES} backslashes in a row")
            if backslashes % 2 == 0:
                return quote
            begin = quote + 1
        raise BadBodyError("not JSON: a text has no end")

    def _find_quote(self, body: bytes, begin: int) -> int:
        self._quotes_left -= 1
        if self._quotes_left < 0:
            raise BodyTooLargeError(
                f"the JSON body has far more than {self._max_images} values, the most that a request needs"
            )
        return body.find(b'"', begin)


def _is_element(body: bytes, opening: int, closing: int) -> bool:
    """Return whether the text between two quotes is an array's element, and neither a key nor its value."""
    before = body[max(0, opening - _MAX_SPACES) : opening].rstrip(_SPACE)[-1:]
    after = body[closing + 1 : closing + 1 + _MAX_SPACES].lstrip(_SPACE)[:1]
    return before in (b"[", b",") and after in (b"]", b",")


def _unescape(written: memoryview) -> Iterator[str]:
    """Yield the pieces of a text that is written in JSON."""
    begin = 0
    while begin < len(written):
        piece = bytes(written[begin : begin + _PIECE_BYTES])
        # Do not divide an escape; only the last piece may end with one.
        at = piece.rfind(b"\\", len(piece) - _ESCAPE_BYTES + 1)
        backslashes = at + 1 - len(piece[: at + 1].rstrip(b"\\"))
        # Two of them are a whole escape.
        if at > 0 and backslashes % 2 and begin + len(piece) < len(written):
            piece = piece[:at]
        begin += len(piece)
        # Base64 is ASCII; other characters, which may have been divided, are refused as such later.
        if not piece.isascii():
            yield "\N{REPLACEMENT CHARACTER}"
            return
        try:
            yield from_json(b'"%b"' % piece)
        except ValueError as error:
            raise BadBodyError(f"not JSON: {error}, in a text") from error
