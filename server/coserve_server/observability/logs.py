"""The log: lines for people, or one JSON object a line."""

import logging

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from coserve_server.observability.record import current
from coserve_server.settings import Settings

# Characters that would end a line, or do things to a terminal, in texts that clients may have made up.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {10: "\\n"}


class TextFormatter(logging.Formatter):
    """`LEVEL:     message [request id]`, and below it the traceback, if there is one."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s:     %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line, without control characters."""
        line = super().formatMessage(record).translate(_CONTROLS)
        return f"{line} [{request}]" if (request := getattr(record, "request_id", None)) else line


def json_formatter() -> logging.Formatter:
    """One JSON object a line: time (UTC, ISO 8601), level, logger, message, and a call's `extra`."""
    return JsonFormatter(
        "{levelname}{name}{message}",
        style="{",
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        timestamp=True,
        # uvicorn's message again, with colours.
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],
    )


def configure(settings: Settings) -> None:
    """Have every logger of the process write to standard error in the form the settings name."""
    handler = logging.StreamHandler()
    handler.setFormatter(json_formatter() if settings.log_format == "json" else TextFormatter())
    handler.addFilter(name_request)
    logging.basicConfig(handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("coserve_server").setLevel(settings.log_level.upper())


def name_request(record: logging.LogRecord) -> bool:
    """Add the id of the request in progress; a filter that keeps everything."""
    if request := current().id:
        record.request_id = request
    return True
