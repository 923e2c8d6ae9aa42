"""Run the tests on every Python and with the oldest and newest libraries that are supported.

`make test-compat` runs every session, `nox --list` shows them. A session is skipped, with a warning, if its
Python is not on this machine.
"""

import os
import re
import sys
from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
"""The Pythons that `pyproject.toml` has classifiers for."""
OLDEST_PYTHON = PYTHONS[0]
OLDEST_ONNXRUNTIME = "1.17.0"
"""The oldest ONNX Runtime that loads exported networks (docs/guides/training/export.md)."""
EXTRAS = ("server", "client", "otel", "openvino", "heic")
CONSTRAINTS = ("--constraint", "constraints.txt")
COMPOSE_1 = (
    "docker-compose==1.29.2",
    "docker==5.0.3",
    "attrs",
    "certifi",
    "charset-normalizer",
    "distro",
    "dockerpty",
    "docopt",
    "idna",
    "jsonschema<4",
    "pyrsistent",
    "python-dotenv",
    # What Compose asks for, below 6, no longer builds.
    "pyyaml",
    "requests",
    "setuptools<81",
    "six",
    "texttable",
    "urllib3",
    "websocket-client",
)
TEST_TOOLS = (
    "tritonclient[http]",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "hypothesis",
    "psutil",
    "tomli; python_version < '3.11'",
    "trustme",
    "onnx",
)

# nox finds Pythons on the PATH, where pyenv shows only the chosen ones.
PYENV = Path(os.environ.get("PYENV_ROOT") or Path("~/.pyenv").expanduser())
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, sorted(PYENV.glob("versions/3.*/bin")))])

nox.options.default_venv_backend = "venv"
nox.options.download_python = "never"
# Otherwise a missing Python is an error wherever a variable CI is set.
nox.options.error_on_missing_interpreters = False


@nox.session(python=PYTHONS)
def quick(session: nox.Session) -> None:
    """Test the server and the client with the versions of constraints.txt."""
    install(session, *CONSTRAINTS, "--editable", f".[{','.join(EXTRAS)}]", *TEST_TOOLS)
    run_quick_tests(session)


@nox.session(python=PYTHONS)
def setup(session: nox.Session) -> None:
    """Check, without installing anything, that `make setup` finds every package of constraints.txt."""
    install(session, "--dry-run", *CONSTRAINTS, "--editable", ".[all,dev,docs]")


@nox.session(python=OLDEST_PYTHON)
def oldest(session: nox.Session) -> None:
    """Test the server and the client with the oldest versions that pyproject.toml allows."""
    install(session, *lower_bounds(*EXTRAS), *TEST_TOOLS)
    install(session, "--no-deps", "--editable", ".")
    run_quick_tests(session)


@nox.session(python=OLDEST_PYTHON)
def oldest_onnxruntime(session: nox.Session) -> None:
    """Run shipped and newly exported networks with the oldest ONNX Runtime."""
    install(session, f"onnxruntime=={OLDEST_ONNXRUNTIME}", "numpy<2")
    check_networks(session)


@nox.session
def newest_onnxruntime(session: nox.Session) -> None:
    """Run shipped and newly exported networks with the newest ONNX Runtime that has been released."""
    install(session, "--upgrade", "onnxruntime", "numpy")
    check_networks(session)


@nox.session
def compose(session: nox.Session) -> None:
    """Read the Compose files with Compose 1.29 and 2.40; neither needs a Docker engine for it."""
    install(session, "--no-deps", *COMPOSE_1)
    folder = session.create_tmp()
    # The tests run in the Python that runs nox, since Compose 1.29 needs other libraries than they do.
    session.run(sys.executable, "tests/compose/stand_ins.py", "--compose", folder, external=True)
    tests = ("tests/compose/test_files.py", "-k", "test_compose_reads_the_files", "-rs")
    path = os.pathsep.join([folder, session.bin, os.environ["PATH"]])
    session.run(sys.executable, "-m", "pytest", "--quiet", *tests, env={"PATH": path}, external=True)


def check_networks(session: nox.Session) -> None:
    """Compare logits with those recorded, and with those of networks exported by the Python that runs nox."""
    check = ("python", "tests/compat/check_onnxruntime.py")
    session.run(*check)
    folder = Path(session.create_tmp(), "networks")
    session.run(sys.executable, "tests/compat/make_networks.py", folder, external=True)
    session.run(*check, folder / "repository", folder / "logits.json")


def install(session: nox.Session, *arguments: str) -> None:
    """Install with pip, which prints only warnings and errors."""
    session.install("--quiet", "--disable-pip-version-check", *arguments)


def run_quick_tests(session: nox.Session) -> None:
    """Run the tests of the server, the client and the decoder, which need neither PyTorch nor Triton."""
    options = ("--quiet", "--numprocesses=2", "--dist=loadfile")
    pytest = ("python", "-m", "pytest", *options)
    session.run(*pytest, *(session.posargs or ("tests/server", "tests/client", "tests/images")))


def lower_bounds(*extras: str) -> list[str]:
    """Return the project's requirements and those of some extras, each pinned to its lower bound."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    optional = project["optional-dependencies"]
    requirements = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    return [re.sub(r">=([\w.]+)[^;]*", r"==\1 ", line) for line in requirements]
