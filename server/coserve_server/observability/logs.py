"""The log: lines for people, or one JSON object per line."""

import functools
import json
import logging
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TextIO

from coserve_server.machine.streams import write
from coserve_server.observability.record import logged_id
from coserve_server.settings import Settings

# Control characters in client-made text would end a line or act on a terminal.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {10: "\\n"}

# Attributes of every log record; `color_message` is uvicorn's copy of the message.
_EVERY = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName", "color_message"}

PATIENCE_S = 0.1
"""How long the server waits once for the log's reader; requests wait meanwhile."""
DROPPED = "%d lines of the log were dropped: nobody read standard error"


class TextFormatter(logging.Formatter):
    """Formats `LEVEL:     message [request id]`, with the traceback below; workers name themselves first."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s:     %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the line without control characters."""
        line = super().formatMessage(record).translate(_CONTROLS)
        if worker := getattr(record, "worker", None):
            level, gap, message = line.partition(":     ")
            line = f"{level}{gap}worker {worker}: {message}"
        return f"{line} [{request}]" if (request := getattr(record, "request_id", None)) else line

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's names
        """Return the traceback, indented: text quoted in an error may look like another log line."""
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"    {line.translate(_CONTROLS)}" for line in lines)


class JsonFormatter(logging.Formatter):
    """Formats JSON objects: time (UTC, ISO 8601), level, logger, message, `extra` fields, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, in ASCII."""
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


if TYPE_CHECKING:
    StreamHandler = logging.StreamHandler[TextIO]
else:
    # Python 3.10 does not take the type at run time.
    StreamHandler = logging.StreamHandler


class Handler(StreamHandler):
    """Writes to standard error; drops and counts lines while nobody reads it.

    Attributes:
        dropped: lines since the last that was written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            if self._write(self.format(record)):
                return
        except Exception:
            self.handleError(record)
        self.dropped += 1

    def _write(self, line: str) -> bool:
        patience_s = 0 if self.dropped else PATIENCE_S
        if self.dropped:
            note = logging.LogRecord(__name__, logging.WARNING, "", 0, DROPPED, (self.dropped,), None)
            if not write(self.stream, self.format(note) + "\n", patience_s):
                return False
            self.dropped = 0
        return write(self.stream, line + "\n", patience_s)


def configure(settings: Settings, worker: int | None = None) -> None:
    """Make every logger of the process write to standard error in the settings' format.

    Args:
        worker: number of the process, if there are several; every line carries it.
    """
    handler = Handler()
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    handler.addFilter(name_request)
    if worker is not None:
        handler.addFilter(functools.partial(_name_worker, worker))
    logging.basicConfig(handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(is_no_lost_client)
    for logger in ("coserve_server", "uvicorn"):
        logging.getLogger(logger).setLevel(settings.log_level.upper())


def is_no_lost_client(record: logging.LogRecord) -> bool:
    """Drop gRPC's tracebacks about clients that left while they were answered; a filter."""
    return not record.getMessage().startswith("ExecuteBatchError raised in core")


def name_request(record: logging.LogRecord) -> bool:
    """Add the current request's id, unless the line names its requests; a filter that keeps everything."""
    if (request := logged_id.get()) and not hasattr(record, "request_id"):
        record.request_id = request
    return True


def _name_worker(number: int, record: logging.LogRecord) -> bool:
    record.worker = number
    return True
