"""Write to streams whose reader may have stopped reading."""

import select
from typing import TextIO

CHUNK = 1000
"""Characters whose UTF-8 fits into a pipe that poll(2) calls writable: it has room for 4096 bytes."""


def write(stream: TextIO, text: str, patience_s: float) -> bool:
    """Write a text, unless the stream takes nothing for some time; return whether it is written.

    A pipe that nobody reads, a stopped terminal or a full disk must not stop the program.
    """
    for start in range(0, len(text), CHUNK):
        if not _is_writable(stream, patience_s):
            return False
        try:
            stream.write(text[start : start + CHUNK])
            stream.flush()
        except OSError:
            return False
    return True


def _is_writable(stream: TextIO, patience_s: float) -> bool:
    """Return whether a write does not block, as far as the system can tell."""
    try:
        poll = select.poll()
        poll.register(stream, select.POLLOUT)
        return bool(poll.poll(patience_s * 1000))
    # Not a file of the system's, or not a system that has this.
    except (OSError, ValueError, AttributeError):
        return True
