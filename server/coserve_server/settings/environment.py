"""`COSERVE_…` variables: settings, and others with the same prefix."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping

from pydantic_settings import BaseSettings, EnvSettingsSource

PREFIX = "COSERVE_"
OTHERS = frozenset(
    {
        "COSERVE_CONFIG",
        "COSERVE_URL",
        "COSERVE_API_KEY",
        "COSERVE_DATA",
        "COSERVE_HEALTHCHECK_CERTIFICATE",
        "COSERVE_HEALTHCHECK_KEY",
    }
)
"""Variables that commands and the container's health check read besides the settings."""

# Kubernetes describes every Service to every container in this way, and Docker every linked container.
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_LINK_NAME = re.compile(
    r".*_SERVICE_(HOST|PORT(_.*)?)|.*_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?", re.IGNORECASE
)
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://.*", re.IGNORECASE)


class Environment(EnvSettingsSource):
    """The settings in the environment; an empty variable counts as not set."""

    def __init__(self, settings: type[BaseSettings]) -> None:
        super().__init__(settings, env_ignore_empty=True)
        self.env_vars = {
            name: value for name, value in self.env_vars.items() if not is_service_link(name, value or "")
        }


def is_service_link(name: str, value: str) -> bool:
    """Return whether a variable describes a Service: one named `coserve` sets COSERVE_PORT=tcp://…."""
    if _LINK_NAME.fullmatch(name):
        return True
    return name.upper().endswith("_PORT") and _LINK_VALUE.fullmatch(value) is not None


def find_notes(settings: Iterable[str], variables: Mapping[str, str] = os.environ) -> list[str]:
    """Describe variables that look like settings, but are not taken.

    Args:
        settings: names of the settings.
    """
    known = {f"{PREFIX}{name.upper()}" for name in settings}
    own = {name.upper(): value for name, value in variables.items() if name.upper().startswith(PREFIX)}
    links = sorted(name for name, value in own.items() if is_service_link(name, value))
    notes = []
    if links:
        notes.append(
            f"ignored, since Kubernetes or Docker sets them for a service: {', '.join(links)} "
            "(enableServiceLinks: false turns them off)"
        )
    if variables.get("FORWARDED_ALLOW_IPS"):
        notes.append("FORWARDED_ALLOW_IPS is ignored; COSERVE_TRUSTED_PROXIES names the proxies to trust")
    for name in sorted(own.keys() - known - OTHERS - set(links)):
        (nearest,) = difflib.get_close_matches(name[:100], known, 1, cutoff=0)
        notes.append(f"{name[:100]}: no setting has this name; the nearest is {nearest}")
    return notes
