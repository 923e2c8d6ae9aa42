"""Stopping on request."""

import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_once() -> None:
    """Let the first SIGINT or SIGTERM raise KeyboardInterrupt, and ignore more: `timeout` sends two."""

    def stop(*_: object) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, stop)
