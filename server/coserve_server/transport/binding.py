"""Binds addresses and formats them."""

import socket

from coserve_server.errors import AddressError


def bind(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """Return a TCP socket bound to the address, not yet accepting connections.

    Args:
        is_shared: whether other processes may listen on the address too, with SO_REUSEPORT (socket(7)).

    Raises:
        AddressError: the address is in use, is not this machine's, or needs privileges.
    """
    listener = None
    try:
        # asyncio disables Nagle's algorithm only on sockets that name TCP as their protocol.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    # A name that is not a host's, or has a null byte, raises ValueError.
    except (OSError, ValueError) as error:
        if listener is not None:
            listener.close()
        raise _fault(host, port, error) from error
    return listener


def check_address(host: str, port: int, *, is_shared: bool = False) -> None:
    """Check that one can listen on an address, for a library that does not say why it cannot.

    Args:
        is_shared: see `bind`.

    Raises:
        AddressError: the address is in use, is not this machine's, or needs privileges.
    """
    with bind(host, port, is_shared=is_shared) as listener:
        try:
            # Binding does not fail while another socket is bound but does not listen yet.
            listener.listen()
        except OSError as error:
            raise _fault(host, port, error) from error


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
        raise _fault(host, address[1], error) from error
    return reserved


def format_address(host: str, port: int) -> str:
    """Return an address as it is written in URLs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _fault(host: str, port: int, error: Exception) -> AddressError:
    reason = getattr(error, "strerror", None) or error
    return AddressError(f"cannot listen on {host} port {port}: {reason}")
