"""Handles requests to stop: Ctrl-C and SIGTERM."""

import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_once() -> None:
    """Raise KeyboardInterrupt on the first SIGINT or SIGTERM, and ignore later ones: `timeout` sends two."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, stop)
