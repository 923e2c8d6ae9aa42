"""Connections to Triton servers."""

import json
from collections.abc import Sequence
from pathlib import Path

import grpc.aio

from coserve_server.settings import Settings

Metadata = Sequence[tuple[str, str]]

# A call whose connection is lost is tried once more, on a new one.
# https://github.com/grpc/grpc/blob/master/doc/service_config.md
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 2,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.01s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
OPTIONS = [
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Reconnect within two seconds to a Triton that comes back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # This also limits one attempt to connect.
    ("grpc.min_reconnect_backoff_ms", 1000),
    # Ignore the environment's proxy: it leads to the internet, not to Triton.
    ("grpc.enable_http_proxy", 0),
    # Do not share connections, so that closing the channel closes them.
    ("grpc.use_local_subchannel_pool", 1),
]


def open_channel(address: str, name: str, settings: Settings) -> grpc.aio.Channel:
    """Open a channel to one server, encrypted if the settings say so; it connects on first use.

    Args:
        address: `ADDRESS:PORT`.
        name: `HOST:PORT`, which the certificate and proxies on the way know.
    """
    # The percent sign before an IPv6 address' zone is part of a URI here.
    target = f"dns:///{address.replace('%', '%25')}"
    options = [*OPTIONS, ("grpc.default_authority", name)]
    if not settings.triton_tls:
        return grpc.aio.insecure_channel(target, options)
    credentials = grpc.ssl_channel_credentials(
        _read(settings.triton_root_certificates),
        _read(settings.triton_client_key),
        _read(settings.triton_client_certificate),
    )
    return grpc.aio.secure_channel(target, credentials, options)


def _read(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None


def call_metadata(settings: Settings) -> Metadata:
    """Return the metadata of every call: the bearer token (RFC 6750, section 2.1), if there is one."""
    if settings.triton_token is None:
        return ()
    return (("authorization", f"Bearer {settings.triton_token.get_secret_value()}"),)
