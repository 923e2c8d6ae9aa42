"""What `coserve --version` prints."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version


def coserve_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("coserve")
    except PackageNotFoundError:
        return "(not installed)"


def version_lines() -> Iterator[str]:
    """Yield the versions of Coserve, Python and the engines' libraries; none of these is imported."""
    from coserve_server.engines.installed import LIBRARIES, installed_libraries
    from coserve_server.machine.cores import usable_cores

    cores = usable_cores().count
    yield f"coserve {coserve_version()}"
    yield f"Python {platform.python_version()}, {cores} usable core{'' if cores == 1 else 's'}"
    found = [
        f"{name} {number}" for engine in LIBRARIES for name, number in installed_libraries(engine).items()
    ]
    yield f"engines: {', '.join(found) or 'none installed'}"
