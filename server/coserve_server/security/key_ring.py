"""The API keys that are valid now, read again when their file changes."""

import hmac
import logging
import time
from pathlib import Path

from coserve_server.errors import KeysError
from coserve_server.security.file_stamp import LOOK_S, file_stamp
from coserve_server.security.keys import ApiKey, digest, read_keys

logger = logging.getLogger(__name__)

_HALF = 16


class KeyRing:
    """The keys of one file."""

    def __init__(self, file: Path, look_s: float = LOOK_S) -> None:
        """Read the file; it is looked at again at most once in `look_s` seconds.

        Raises:
            KeysError: the file is broken, or has no key.
        """
        self._file, self._look_s = file, look_s
        self._stamp, self._next_look = file_stamp(file), time.monotonic() + look_s
        self._keys = _index(read_keys(file))
        if not self._keys:
            raise KeysError(
                f"api_keys_file: {file} has no key; make one: coserve keys create NAME --file {file}"
            )

    def find(self, key: bytes) -> ApiKey | None:
        """What is known of a key; None if it is not valid."""
        if time.monotonic() >= self._next_look:
            self._look()
        digested = digest(key)
        # Nobody can choose a key by its digest, so the time this look-up takes tells nothing of a valid key.
        found = self._keys.get(digested[:_HALF])
        return found if found is not None and hmac.compare_digest(found.digest, digested) else None

    def _look(self) -> None:
        """Read the file again if it changed; a broken one changes nothing, and is logged once."""
        self._next_look = time.monotonic() + self._look_s
        stamp = file_stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _index(read_keys(self._file))
        except KeysError as error:
            logger.error("%s; the keys read before stay valid, revoked ones too", error)
        else:
            logger.info("API keys: %s has %d now", self._file, len(self._keys))


def _index(keys: list[ApiKey]) -> dict[bytes, ApiKey]:
    return {key.digest[:_HALF]: key for key in keys}
