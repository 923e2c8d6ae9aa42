"""The engines' libraries that are installed, found without importing them."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "triton": ("tritonclient",),
}
"""The distributions that provide an engine's library, by the engine's name."""


def installed_libraries(engine: str) -> dict[str, str]:
    """Return the versions of an engine's installed distributions, by their names; empty without any."""
    versions = {}
    for name in LIBRARIES[engine]:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
