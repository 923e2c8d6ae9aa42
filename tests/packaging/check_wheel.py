"""Check a wheel: what it holds, and that it serves the shipped ensembles from an empty environment.

usage: check_wheel.py WHEEL
"""

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[2]
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
MODEL = "wide_resnet16_4_s2"


def main(wheel: Path) -> None:
    """Check the wheel; end with status 1 and the first fault."""
    with ZipFile(wheel) as archive:
        faults = compare(archive.namelist(), tracked_files())
    if faults:
        sys.exit("\n".join(faults))
    with tempfile.TemporaryDirectory() as folder:
        use(wheel.resolve(), Path(folder))
    print(f"{wheel} holds what it should, and serves in an empty environment")


def tracked_files() -> list[str]:
    """List the files of all packages that git tracks, as the wheel names them."""
    command = ["git", "ls-files", "*/coserve_*/*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name.partition("/")[2] for name in done.stdout.splitlines()]


def compare(names: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """Return what is missing from a wheel, and what should not be in it."""
    files = {name for name in names if ".dist-info/" not in name}
    metadata = {name.partition(".dist-info/")[2] for name in names} - {""}
    missing = sorted((set(tracked) - files) | (METADATA - metadata))
    surplus = sorted((files - set(tracked)) | (metadata - METADATA))
    return [f"missing: {name}" for name in missing] + [f"not tracked by git: {name}" for name in surplus]


def use(wheel: Path, folder: Path) -> None:
    """Install the wheel, first without extras, and classify an image with a server."""
    venv.create(folder / "venv", with_pip=True)
    scripts = folder / "venv" / "bin"
    # Nothing but the wheel may be imported.
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: object, status: int = 0) -> str:
        done = subprocess.run(
            [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True
        )
        if done.returncode != status:
            shown = " ".join(map(str, command))
            sys.exit(f"{shown}: status {done.returncode}, not {status}\n{done.stdout}{done.stderr}")
        return done.stdout

    pip = (scripts / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    constraint = ("--constraint", ROOT / "constraints.txt")
    run(*pip, *constraint, wheel)
    print(run(scripts / "coserve", "--version"), end="")
    run(scripts / "coserve", "doctor", "serve", status=1)
    run(*pip, *constraint, f"{wheel}[server,client]")
    run(scripts / "coserve", "doctor", "serve", "classify")
    draw = "from PIL import Image; Image.new('RGB', (40, 40), 'red').save('photo.png')"
    run(scripts / "python", "-c", draw)
    options = ("--repository", ROOT / "model_repository", "--default-model", MODEL, "--port", "0")
    server = subprocess.Popen(
        [scripts / "coserve", "serve", *options],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        announcement = server.stdout.readline().split()
        if len(announcement) < 3:
            sys.exit(f"the server ended with status {server.wait(60)}")
        print(run(scripts / "coserve", "classify", "photo.png", "--url", announcement[2]), end="")
    finally:
        server.terminate()
        server.communicate()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
