"""The libraries that an extra of the distribution asks for, and those that are missing here."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

STAND_INS = {"onnxruntime": "onnxruntime-gpu"}
"""Distributions that have the same modules as a required one."""


def missing_libraries(extra: str) -> list[str]:
    """Return what an extra asks for on this system and Python, and is missing or has another version.

    Raises:
        importlib.metadata.PackageNotFoundError: Coserve itself is not installed.
    """
    return list(dict.fromkeys(_missing(extra)))


def _missing(extra: str) -> Iterator[str]:
    for line in requires("coserve") or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
            continue
        number = _installed(requirement.name)
        if number is None:
            yield requirement.name
        elif not requirement.specifier.contains(number, prereleases=True):
            yield f"{requirement.name} {number} (needs {requirement.specifier})"


def _installed(name: str) -> str | None:
    """Return the version of a distribution, or of the one that stands in for it."""
    try:
        return version(name)
    except PackageNotFoundError:
        stand_in = STAND_INS.get(name)
        return _installed(stand_in) if stand_in else None
