"""Divides a multipart body into its parts (RFC 7578), all in memory: the limit on the body bounds them."""

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from coserve_server.errors import BadBodyError, TooManyImagesError

MAX_FIELDS = 16
"""Limit on parts that are not files. Each is an error, but only a whole body shows which comes first."""


@dataclass
class Part:
    """A part of a body.

    Attributes:
        name: name of the form's field.
        filename: None if the part is not a file; its data is then dropped.
        pieces: the file's data.
    """

    name: str
    filename: str | None
    pieces: list[bytes] = field(default_factory=list)


class PartReader:
    """Reads parts from a body that arrives in pieces.

    Attributes:
        parts: the parts whose head has been read.
    """

    def __init__(self, content_type: str, max_files: int) -> None:
        """Read a body of this Content-Type.

        Raises:
            BadBodyError: it has no usable boundary, or another charset than UTF-8.
        """
        options = parse_options_header(content_type)[1]
        # Some of Python's codecs fail on any bytes, or return text that no response can encode.
        if options.get(b"charset", b"utf-8").lower() != b"utf-8":
            raise BadBodyError("multipart body: the charset must be utf-8")
        if b"boundary" not in options:
            raise BadBodyError("multipart body: Missing boundary in multipart.")
        self.parts: list[Part] = []
        self._files = 0
        self._max_files = max_files
        self._disposition = b""
        self._header_name = b""
        self._header_value = b""
        self._ended = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_to_header_name,
                    "on_header_value": self._add_to_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_head,
                    "on_part_data": self._add_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise BadBodyError(f"multipart body: {error}") from error

    def write(self, data: bytes) -> None:
        """Take the next piece of the body.

        Raises:
            BadBodyError: the body is broken.
            TooManyImagesError: it has more files than allowed.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BadBodyError("multipart body: Invalid multipart data.") from error

    def finish(self) -> list[Part]:
        """Return the parts of a body whose last piece has been written.

        Raises:
            BadBodyError: the body is cut off.
        """
        # The parser by itself accepts a body that is cut off between two parts.
        if not self._ended:
            raise BadBodyError("multipart body: the last boundary is missing")
        return self.parts

    def _begin_part(self) -> None:
        self._disposition = b""

    def _add_to_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_to_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = b""
        self._header_value = b""

    def _end_head(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"name" not in options:
            fault = 'The Content-Disposition header field "name" must be provided.'
            raise BadBodyError(f"multipart body: {fault}")
        filename = options.get(b"filename")
        self.parts.append(Part(_decode(options[b"name"]), None if filename is None else _decode(filename)))
        self._files += filename is not None
        # One file more than allowed is left for `Classifier` to report.
        if self._files > self._max_files + 1:
            raise TooManyImagesError(f"more than the {self._max_files} images allowed")
        if len(self.parts) - self._files > MAX_FIELDS:
            fault = f"Too many fields. Maximum number of fields is {MAX_FIELDS}."
            raise BadBodyError(f"multipart body: {fault}")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        if part.filename is not None:
            part.pieces.append(data[start:end])

    def _end(self) -> None:
        self._ended = True


def _decode(text: bytes) -> str:
    """Decode a name; one that is not UTF-8 is shown as Latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")
