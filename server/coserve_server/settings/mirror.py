"""Mirroring: a share of requests also goes to another ensemble, unseen by clients."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from coserve_server.settings.section import Section


def _check_mirror(text: str) -> str:
    name, at, version = text.rpartition("@")
    if at and not (name and re.fullmatch("[0-9]{1,18}", version)):
        raise ValueError(f"{text!r} is neither NAME nor NAME@VERSION, such as photos@2")
    return text


class MirrorSettings(Section):
    """Mirroring."""

    mirror: Annotated[str, AfterValidator(_check_mirror)] | None = None
    """Ensemble, as `NAME` or `NAME@VERSION`, that a share of requests also goes to while the server is idle;
    metrics compare its answers with the clients'."""
    mirror_share: float = Field(0.1, gt=0, le=1)
    """Share of requests that `mirror` gets."""

    @property
    def mirrored(self) -> tuple[str, str | None] | None:
        """Return the mirror's name and version (None: the newest); None without a mirror."""
        if self.mirror is None:
            return None
        name, at, version = self.mirror.rpartition("@")
        return (name, version) if at else (version, None)
