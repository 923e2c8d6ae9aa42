"""Logs and traces."""

from typing import Literal

from pydantic import AnyHttpUrl

from coserve_server.settings.section import Section


class LogSettings(Section):
    """Logs and traces."""

    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    """Least severe level of messages to log."""
    log_format: Literal["text", "json"] = "text"
    """Format of the log: lines for people, or one JSON object per line."""
    access_log: bool = True
    """Whether to log every request, at level `info`."""
    otlp_endpoint: AnyHttpUrl | None = None
    """Base URL of the OpenTelemetry collector to send traces to, over OTLP/HTTP; without it there are no
    traces. Needs the extra `otel`."""
