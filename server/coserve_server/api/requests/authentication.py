"""Authentication by API keys (RFC 6750)."""

from collections.abc import Mapping

from coserve_server.errors import UnauthenticatedError
from coserve_server.security.key_ring import KeyRing
from coserve_server.security.keys import ApiKey


async def authenticate(keys: KeyRing, headers: Mapping[bytes, bytes]) -> ApiKey:
    """Return the record of a request's key.

    Args:
        headers: headers by lower-case name.

    Raises:
        UnauthenticatedError: there is no key, or it is not valid.
    """
    key = _read_key(headers)
    if key is None:
        raise UnauthenticatedError(
            "an API key is needed: send Authorization: Bearer KEY, or X-API-Key: KEY", key_sent=False
        )
    known = await keys.find(key)
    if known is None:
        raise UnauthenticatedError("the API key is not valid", key_sent=True)
    return known


def _read_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Read the key from either header."""
    if (key := headers.get(b"x-api-key")) is not None:
        return key
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else None
