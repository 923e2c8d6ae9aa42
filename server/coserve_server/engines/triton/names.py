"""Finds the addresses behind the names of Triton servers.

gRPC's own resolver looks a name up again only when it loses a connection, so it would never use a server that
joins: https://github.com/grpc/grpc/blob/master/doc/naming.md.
"""

import ipaddress
import socket

from coserve_server.machine.threads import call_on_thread

RESOLVE_S = 5.0
"""Time between look-ups of a name. Kubernetes' name server may keep addresses for up to 30 s."""


class UnknownNameError(Exception):
    """A name has no address now, or no name server answers."""


def split(name: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, without the brackets of an IPv6 address."""
    host, _, port = name.rpartition(":")
    return host.strip("[]"), int(port)


def is_address(host: str) -> bool:
    """Return whether a host is an address, which stands for itself."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def find_addresses(name: str) -> list[str]:
    """Look up `HOST:PORT`; return `ADDRESS:PORT` of every server behind it, sorted.

    Raises:
        UnknownNameError: there is none now; servers found before may still be there.
    """
    host, port = split(name)
    if is_address(host):
        return [name]

    def look_up() -> list[str]:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]

    try:
        found = await call_on_thread(look_up, "names")
    # A label of more than 63 characters is a UnicodeError.
    except (OSError, UnicodeError) as error:
        raise UnknownNameError(getattr(error, "strerror", None) or str(error)) from error
    return [f"[{one}]:{port}" if ":" in one else f"{one}:{port}" for one in sorted(set(found))]
