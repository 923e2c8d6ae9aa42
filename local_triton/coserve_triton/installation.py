"""Find the Triton server in the wheel `nvidia-pytriton`; the wheel's own Python package is not used."""

import ctypes
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from coserve_triton.errors import TritonError

STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """The files of a Triton server.

    Attributes:
        server: the executable.
        python_backend: the Python backend's library, its module, and its stub for the running Python.
        library_path: folders of the shared libraries that the server and the stub need.
    """

    server: Path
    python_backend: tuple[Path, ...]
    library_path: tuple[Path, ...]


def find_installation() -> Installation:
    """Find the installed wheel.

    Raises:
        TritonError: it is not installed, or has no stub or no shared library for the running Python.
    """
    try:
        wheel = distribution("nvidia-pytriton")
    except PackageNotFoundError as error:
        raise TritonError(
            "Triton is not installed: pip install 'coserve[triton]' (Linux on x86-64, Python 3.10 to 3.12)"
        ) from error
    root = Path(str(wheel.locate_file("pytriton/tritonserver")))
    stubs = root / "python_backend_stubs"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not (stubs / version / STUB).is_file():
        known = sorted((folder.name for folder in stubs.iterdir()), key=lambda name: int(name.split(".")[1]))
        raise TritonError(f"Triton runs models with Python {', '.join(known)}, not with {version}")
    backend = root / "backends" / "python"
    return Installation(
        root / "bin" / "tritonserver",
        (
            backend / "libtriton_python.so",
            backend / "triton_python_backend_utils.py",
            stubs / version / STUB,
        ),
        (Path(str(wheel.locate_file("nvidia_pytriton.libs"))), *_python_library_folders(version)),
    )


def _python_library_folders(version: str) -> list[Path]:
    """Return the folder of the running Python's shared library, or none if the dynamic loader finds it."""
    name = f"libpython{version}.so.1.0"
    configured = [sysconfig.get_config_var(key) for key in ("LIBDIR", "LIBPL")]
    for folder in (*filter(None, configured), f"{sys.base_prefix}/lib"):
        if (Path(folder) / name).is_file():
            return [Path(folder)]
    try:
        ctypes.CDLL(name)
    except OSError as error:
        raise TritonError(
            f"Triton runs models with {name}, which this Python ({sys.base_prefix}) lacks: install the "
            f"package libpython{version}, or a Python built with --enable-shared"
        ) from error
    return []
