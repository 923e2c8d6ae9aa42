"""The gRPC server: its address, TLS, and limits on connections."""

import math

import grpc.aio

from coserve_server.api.grpc.service import Services, max_open_calls
from coserve_server.errors import AddressError
from coserve_server.security.grpc_tls import server_credentials
from coserve_server.settings import Settings
from coserve_server.transport.binding import bind, check_address, format_address
from coserve_server.transport.connections import UNREAD_RESPONSE_MS
from coserve_server.transport.heads import MAX_HEAD_BYTES

MAX_CALLS_PER_CONNECTION = 100
MAX_OPTION = 2**31 - 2
"""gRPC's options have 32 bits, and the largest number aborts the process; settings may be larger."""
IDLE_MS = 300_000
"""Time after which a connection without calls is closed; clients connect again by themselves."""
KEEP_ALIVE_MS = 60_000
"""Time without a byte from the client after which the connection is probed."""
MIN_CLIENT_PING_MS = 10_000
"""Clients that ping more often are disconnected, after a few warnings."""


class GrpcServer:
    """A gRPC server: bound at once, serving after `start`.

    Attributes:
        address: `HOST:PORT`.
    """

    def __init__(self, settings: Settings, port: int, shared: str | None = None) -> None:
        """Bind the address; must be called on the event loop.

        Args:
            shared: numeric `HOST:PORT` on which other processes listen too, in place of the settings' host
                and the port; connections are divided by a hash of their addresses.

        Raises:
            AddressError: the address is in use, is not this machine's, or needs privileges.
            TlsError: a certificate or its key cannot be used.
        """
        self._server = grpc.aio.server(
            options=_options(settings, shared is not None),
            # Calls that neither infer nor stay open have no limit of their own.
            maximum_concurrent_rpcs=min(settings.max_connections + max_open_calls(settings), MAX_OPTION),
        )
        credentials = server_credentials(settings)
        self.address = shared or _find_address(settings.host, port)
        try:
            self.address = _add_port(self._server, self.address, credentials)
        except RuntimeError as error:
            raise _explain(self.address, shared is not None) from error
        self._services: Services | None = None

    async def start(self, services: Services) -> None:
        """Answer calls."""
        self._services = services
        self._server.add_generic_rpc_handlers((services,))
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, and return once those in progress have been answered, or after `grace_s`."""
        if self._services is not None:
            self._services.stop()
        await self._server.stop(grace_s)


def _options(settings: Settings, is_shared: bool) -> list[tuple[str, int]]:
    """Return gRPC's options (grpc/impl/channel_arg_names.h)."""
    options = [
        # By default, a second server could listen on the same port.
        ("grpc.so_reuseport", int(is_shared)),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        # Handlers decompress messages, within the limit: gRPC would check the size afterwards.
        ("grpc.per_message_decompression", 0),
        ("grpc.max_metadata_size", MAX_HEAD_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_HEAD_BYTES),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
        ("grpc.server_handshake_timeout_ms", round(settings.head_timeout_ms)),
        ("grpc.max_connection_idle_ms", IDLE_MS),
        ("grpc.keepalive_time_ms", KEEP_ALIVE_MS),
        ("grpc.keepalive_timeout_ms", UNREAD_RESPONSE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_CLIENT_PING_MS),
    ]
    # Calls in progress are finished, however long; gRPC varies the age by a tenth itself.
    if settings.max_connection_age_ms:
        options.append(("grpc.max_connection_age_ms", math.ceil(settings.max_connection_age_ms)))
    return [(name, min(value, MAX_OPTION)) for name, value in options]


def _find_address(host: str, port: int) -> str:
    """Return the one address to listen on, as for HTTP."""
    # gRPC itself would not report why an address cannot be used, and would use all addresses of a name.
    with bind(host, port) as socket:
        numeric = socket.getsockname()[0]
    return format_address(numeric, port)


def _add_port(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    """Listen on an address, and return it with its port.

    Raises:
        RuntimeError: gRPC cannot, and does not say why.
    """
    if credentials is None:
        chosen = server.add_insecure_port(address)
    else:
        chosen = server.add_secure_port(address, credentials)
    return f"{address.rpartition(':')[0]}:{chosen}"


def _explain(address: str, is_shared: bool) -> AddressError:
    """Return why gRPC could not listen on a numeric address."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        check_address(host, int(port), is_shared=is_shared)
    except AddressError as error:
        return error
    return AddressError(f"cannot listen on {host} port {port}: it was in use a moment ago")
