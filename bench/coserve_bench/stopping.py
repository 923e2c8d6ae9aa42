"""Stopping on request."""

import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_once() -> None:
    """Let the first SIGINT or SIGTERM raise KeyboardInterrupt, and ignore more: `timeout` sends two."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, stop)
