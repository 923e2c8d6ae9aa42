"""The log: lines for people, or one JSON object a line."""

import json
import logging
from datetime import datetime, timezone
from typing import Any

from coserve_server.observability.record import current
from coserve_server.settings import Settings

# Characters that would end a line, or do things to a terminal, in texts that clients may have made up.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {10: "\\n"}

# What every record has; `color_message` is uvicorn's, the message again.
_EVERY = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName", "color_message"}


class TextFormatter(logging.Formatter):
    """`LEVEL:     message [request id]`, and below it the traceback, if there is one."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s:     %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line, without control characters."""
        line = super().formatMessage(record).translate(_CONTROLS)
        return f"{line} [{request}]" if (request := getattr(record, "request_id", None)) else line

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's names
        """The traceback, moved in: what an error quotes may look like another line of the log."""
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"    {line.translate(_CONTROLS)}" for line in lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, logger, message, `extra` fields, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, in ASCII."""
        line = {
            "timestamp": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _EVERY},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(settings: Settings) -> None:
    """Have every logger of the process write to standard error in the form the settings name."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    handler.addFilter(name_request)
    logging.basicConfig(handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("coserve_server").setLevel(settings.log_level.upper())


def name_request(record: logging.LogRecord) -> bool:
    """Add the id of the request in progress; a filter that keeps everything."""
    if request := current().id:
        record.request_id = request
    return True
