"""The system's limit on a process's open files, each connection being one."""

import sys
from contextlib import suppress

OTHERS = 128
"""Files besides connections: libraries, pipes, the repository while it is read."""

if sys.platform == "win32":

    def raise_limit(_connections: int) -> None:
        """Do nothing: sockets have no such limit."""

    def describe_lack(_connections: int) -> str | None:
        """Return None: sockets have no such limit."""
        return None

else:
    import resource

    def raise_limit(connections: int) -> None:
        """Raise this process's limit as far as so many connections need, and the system allows."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = connections + OTHERS
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            # A sandbox may forbid it; then the limit does not suffice, which is told.
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

    def describe_lack(connections: int) -> str | None:
        """Return a warning if a process with this one's limit cannot have so many connections."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = connections + OTHERS
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return None
        return (
            f"max_connections: {connections} connections of a process need about {wanted} open files, but "
            f"the limit is {soft} (ulimit -n); connections above it are closed"
        )
