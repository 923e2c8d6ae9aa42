"""The valid API keys, reloaded when their file changes."""

import logging
from pathlib import Path

from coserve_server.errors import KeysError
from coserve_server.security.file_stamp import read_stamp
from coserve_server.security.keys import ApiKey, compute_digest, read_keys
from coserve_server.security.recheck import CHECK_INTERVAL_S, Recheck

logger = logging.getLogger(__name__)


class KeyRing:
    """The keys of one file."""

    def __init__(self, file: Path, interval_s: float = CHECK_INTERVAL_S) -> None:
        """Read the file, and check it for changes at most once in `interval_s` seconds.

        Raises:
            KeysError: the file is broken, or has no key.
        """
        self._file = file
        self._recheck = Recheck(self._reload, interval_s, f"api_keys_file: {file}")
        self._stamp = read_stamp(file)
        self._keys = _index(read_keys(file))
        if not self._keys:
            raise KeysError(
                f"api_keys_file: {file} has no key; make one: coserve keys create NAME --file {file}"
            )

    async def find(self, key: bytes) -> ApiKey | None:
        """Return the record of a key; None if the key is not valid."""
        await self._recheck.run()
        # Nobody can choose a key by its digest, so lookup time reveals nothing about valid keys.
        return self._keys.get(compute_digest(key))

    def _reload(self) -> None:
        """Read the file again if it changed; a broken file changes nothing and is logged once."""
        stamp = read_stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _index(read_keys(self._file))
        except KeysError as error:
            logger.error("%s; the previous keys stay valid, even revoked ones", error)
        else:
            logger.info("API keys: %s now has %d", self._file, len(self._keys))


def _index(keys: list[ApiKey]) -> dict[bytes, ApiKey]:
    return {key.digest: key for key in keys}
