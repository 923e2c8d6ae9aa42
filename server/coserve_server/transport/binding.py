"""Binds addresses and formats them."""

import socket

from coserve_server.errors import AddressError


def bind(host: str, port: int) -> socket.socket:
    """Return a TCP socket bound to the address, not yet accepting connections.

    Raises:
        AddressError: the address is in use, is not this machine's, or needs privileges.
    """
    listener = None
    try:
        # asyncio disables Nagle's algorithm only on sockets that name TCP as their protocol.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    # A name that is not a host's, or has a null byte, raises ValueError.
    except (OSError, ValueError) as error:
        if listener is not None:
            listener.close()
        raise AddressError(
            f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}"
        ) from error
    return listener


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket that keeps a port for processes that listen on it with SO_REUSEPORT (socket(7)).

    The socket itself gets no connections, since it does not listen.

    Raises:
        AddressError: the address is in use, is not this machine's, or needs privileges.
    """
    # Otherwise a server that shares its port too would not be noticed.
    with bind(host, port) as free:
        family = free.family
        address = free.getsockname()
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(address)
    except OSError as error:
        reserved.close()
        raise AddressError(f"cannot listen on {host} port {address[1]}: {error.strerror}") from error
    return reserved


def format_address(host: str, port: int) -> str:
    """Return an address as it is written in URLs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
