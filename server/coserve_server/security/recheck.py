"""Checks files for changes, on threads: a file system that hangs must not block the server."""

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable

CHECK_INTERVAL_S = 1.0
"""Minimum time between two checks."""
PATIENCE_S = 1.0
"""Longest time for which a request waits for a check."""
HANDSHAKE_PATIENCE_S = 0.1
"""Likewise for a handshake, which blocks all connections meanwhile: TLS libraries call back synchronously."""
SILENCE_S = 10.0
"""Time after which the log says that a file system does not answer."""

logger = logging.getLogger(__name__)


class Recheck:
    """Runs a function that checks files, at most once per interval, whenever what it has read is used."""

    def __init__(self, check: Callable[[], None], interval_s: float, what: str) -> None:
        """Begin the first interval.

        Args:
            check: reads the files if they have changed; called on a thread, never twice at a time.
            interval_s: minimum number of seconds between two checks.
            what: what the log calls the files.
        """
        self._check = check
        self._interval_s = interval_s
        self._what = what
        self._lock = threading.Lock()
        self._began = 0.0
        self._due = time.monotonic() + interval_s
        self._running: concurrent.futures.Future[None] | None = None
        self._is_silent = False

    async def run(self) -> None:
        """Check the files if a check is due; return when it is done, or after `PATIENCE_S`."""
        if running := self._begin(PATIENCE_S):
            await asyncio.wait({asyncio.wrap_future(running)}, timeout=PATIENCE_S)

    def run_in_handshake(self) -> None:
        """Check the files if a check is due; return when it is done, or after `HANDSHAKE_PATIENCE_S`."""
        if running := self._begin(HANDSHAKE_PATIENCE_S):
            concurrent.futures.wait([running], timeout=HANDSHAKE_PATIENCE_S)

    def _begin(self, patience_s: float) -> "concurrent.futures.Future[None] | None":
        """Begin a check if one is due; return the one to wait for, or None.

        Args:
            patience_s: age from which a running check is no longer waited for.
        """
        with self._lock:
            now = time.monotonic()
            if self._running is not None and not self._running.done():
                self._note_silence(now - self._began)
                return self._running if now - self._began < patience_s else None
            if now < self._due:
                return None
            self._began = now
            self._due = now + self._interval_s
            self._is_silent = False
            self._running = concurrent.futures.Future()
            thread = threading.Thread(target=self._run, args=(self._running,), name="recheck", daemon=True)
        try:
            thread.start()
        # The system starts no more threads; a revoked key must not stay valid because of that.
        except RuntimeError:
            self._run(self._running)
        return self._running

    def _run(self, running: "concurrent.futures.Future[None]") -> None:
        try:
            self._check()
        # A bug must not end the checks.
        except Exception:
            logger.exception("checking %s failed", self._what)
        finally:
            # Otherwise the log could note the silence of a check that is just ending, and never its end.
            with self._lock:
                if self._is_silent:
                    took_s = time.monotonic() - self._began
                    logger.warning("%s: its file system answers again, after %.0f s", self._what, took_s)
                running.set_result(None)

    def _note_silence(self, waited_s: float) -> None:
        if waited_s >= SILENCE_S and not self._is_silent:
            self._is_silent = True
            logger.warning(
                "%s: its file system has not answered for %.0f s; until it does, what was read before counts",
                self._what,
                waited_s,
            )
