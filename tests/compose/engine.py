"""Docker and Compose as the tests use them, and the images they need."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.compose.test_files import ROOT, defaults

GATEWAY = "coserve-gateway:compose-test"
OPENVINO = "coserve-gateway-openvino:compose-test"
STAND_INS = "COSERVE_STAND_INS"
"""Variable with the folder that `stand_ins.py` filled, if images cannot be pulled."""


def docker(*arguments: str, stdin: int | None = None) -> str:
    """Run a docker command and return its output; CalledProcessError has its error messages."""
    done = subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True, stdin=stdin)
    return done.stdout


def inspect(name: str) -> dict[str, Any]:
    (found,) = json.loads(docker("inspect", name))
    return found


def installed() -> list[tuple[str, ...]]:
    """List the commands of the installed versions of Compose, one for each version."""
    found = {}
    for program in (("docker", "compose"), ("docker-compose",), ("docker-compose-v2",)):
        if shutil.which(program[0]):
            done = subprocess.run([*program, "version", "--short"], capture_output=True, text=True)
            if done.returncode == 0:
                found.setdefault(done.stdout.strip().removeprefix("v"), program)
    return list(found.values())


class Compose:
    """A version of Compose, with its own project in a copy of the checkout."""

    PROFILES = ("--profile", "embedded", "--profile", "observability", "--profile", "bench")

    def __init__(self, program: tuple[str, ...], folder: Path, variables: Mapping[str, str]) -> None:
        self.program = program
        self.folder = folder
        self.project = f"coserve-test-{os.getpid()}"
        self.environment = {name: text for name, text in os.environ.items() if name not in defaults()}
        self.environment |= {**variables, "COMPOSE_PROJECT_NAME": self.project}
        listed = subprocess.check_output(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
        )
        for name in filter(None, listed.split("\0")):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                shutil.copy(ROOT / name, target)
        if STAND_INS in os.environ:
            shutil.copytree(Path(os.environ[STAND_INS]) / "wheels", folder / "wheels")
        # Containers run as other users.
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)

    def __call__(self, *arguments: str) -> str:
        """Run a command and return its output."""
        command = [*self.program, *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def given(self, **variables: str) -> Iterator[None]:
        """Set more variables within the context."""
        before = self.environment
        self.environment = before | variables
        try:
            yield
        finally:
            self.environment = before

    def container(self, service: str) -> str:
        """Return the id of a service's only container."""
        labels = {"project": self.project, "service": service}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        return docker("container", "ls", "--all", "--quiet", "--no-trunc", *filters).strip()

    def state(self, service: str) -> dict[str, Any]:
        return inspect(self.container(service))["State"]


@contextmanager
def prepare_images() -> Iterator[None]:
    """Pull the images that are missing; if that fails, build stand-ins, and remove them at the end."""
    (base,) = re.findall("^ARG PYTHON_IMAGE=(.+)$", (ROOT / "server/Dockerfile").read_text(), re.MULTILINE)
    named = {"root": base} | {
        target: defaults()[f"COSERVE_{variable}_IMAGE"]
        for target, variable in (("triton", "TRITON"), ("sdk", "SDK"), ("prometheus", "PROMETHEUS"))
    }
    with ExitStack() as stack:
        missing = {target: name for target, name in named.items() if not _have(name)}
        if missing:
            folder = _stand_ins(stack)
            root = "coserve-stand-in:root"
            with (folder / "root.tar").open("rb") as archive:
                docker("import", "--change", 'CMD ["python"]', "-", root, stdin=archive.fileno())
            stack.callback(docker, "image", "rm", "--force", root, *missing.values())
            for target, name in missing.items():
                if target == "root":
                    docker("tag", root, name)
                else:
                    file = str(ROOT / "tests/compose/stand_ins.Dockerfile")
                    options = (
                        "--build-arg",
                        f"ROOT={root}",
                        "--target",
                        target,
                        "--tag",
                        name,
                        "--file",
                        file,
                    )
                    docker("build", *options, str(folder / "images"))
        yield


def _have(image: str) -> bool:
    commands = [["docker", "image", "inspect", image]]
    if STAND_INS not in os.environ:
        commands.append(["docker", "pull", "--quiet", image])
    return any(subprocess.run(command, capture_output=True).returncode == 0 for command in commands)


def _stand_ins(stack: ExitStack) -> Path:
    """Return the folder with the stand-ins, after filling it unless the script `run` has done so."""
    if STAND_INS not in os.environ:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="coserve-stand-ins-"))
        subprocess.run([sys.executable, ROOT / "tests/compose/stand_ins.py", folder], check=True)
        os.environ[STAND_INS] = folder
        stack.callback(os.environ.pop, STAND_INS)
    return Path(os.environ[STAND_INS])
