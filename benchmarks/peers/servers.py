"""The compared servers: how each one is installed, started, queried and stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from coserve_bench.http.images import EncodedImage

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".peers"
BOUNDARY = "coserve-peers"
START_S = 120
STOP_S = 20


class ServerError(Exception):
    """A server cannot be installed or started; the text says why."""


@dataclass(frozen=True)
class Server:
    """A server to compare.

    Attributes:
        name: the server's name, for the report.
        package: package whose version is reported.
        path: path of the URL that takes images.
        upload: name of the multipart field for images; None if the body is the image.
        arguments: returns its command line for a port.
        requirements: requirements file of its environment; None for this environment.
        variables: environment variables.
    """

    name: str
    package: str
    path: str
    upload: str | None
    arguments: Callable[[int], list[str]]
    requirements: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Folder of its environment's programs."""
        if self.requirements is None:
            return Path(sys.executable).parent
        return ENVIRONMENTS / self.requirements.stem.removeprefix("requirements-") / "bin"

    def install(self) -> None:
        """Create its environment, unless it already matches the requirements.

        Raises:
            ServerError: the environment cannot be created.
        """
        if self.requirements is None:
            return
        wanted = self.requirements.read_text()
        stamp = self.folder.parent / "installed.txt"
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        print(f"installing {self.name} into {self.folder.parent}", file=sys.stderr)
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(self.folder.parent)],
            [str(self.folder / "python"), "-m", "pip", "install", "-q", "-r", str(self.requirements)],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise ServerError(f"cannot be installed: {_last_line(done.stderr)}")
        stamp.write_text(wanted)

    def body(self, image: EncodedImage) -> tuple[str, bytes]:
        """Return the content type and body of a request: the image, or an upload of one file (RFC 7578)."""
        if self.upload is None:
            return image.kind, image.data
        head = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{self.upload}"; filename="image"\r\n'
            f"Content-Type: {image.kind}\r\n\r\n"
        )
        body = head.encode() + image.data + f"\r\n--{BOUNDARY}--\r\n".encode()
        return f"multipart/form-data; boundary={BOUNDARY}", body

    def version(self) -> str:
        """Return the version of its package."""
        script = f"from importlib.metadata import version; print(version({self.package!r}))"
        return subprocess.check_output([self.folder / "python", "-c", script], text=True).strip()

    @contextmanager
    def running(
        self, folder: Path, ensemble: Path, image: EncodedImage, prefix: Sequence[str] = ()
    ) -> Iterator["Running"]:
        """Start the server on a free port, wait for its first response, and finally stop all its processes.

        Args:
            folder: folder for its log and temporary files.
            ensemble: file that describes the ensemble to serve.
            image: image to send.
            prefix: what its command line begins with.

        Raises:
            ServerError: it does not start.
        """
        port = _free_port()
        log = folder / "log"
        program, *arguments = self.arguments(port)
        variables = {"ENSEMBLE": str(ensemble), "TMPDIR": str(folder), "RAY_TMPDIR": str(folder)}
        with log.open("w") as output:
            process = subprocess.Popen(
                [*prefix, self.folder / program, *arguments],
                cwd=HERE,
                env={**os.environ, **variables, **self.variables},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        running = Running(self, f"http://127.0.0.1:{port}{self.path}", process)
        try:
            running.wait(image, log)
            yield running
        finally:
            running.stop()


@dataclass(frozen=True)
class Running:
    """A running server."""

    server: Server
    url: str
    process: "subprocess.Popen[bytes]"

    def wait(self, image: EncodedImage, log: Path) -> None:
        """Wait until the server answers."""
        ends = time.monotonic() + START_S
        while time.monotonic() < ends:
            if self.process.poll() is not None:
                raise ServerError(f"ended while it started: {_last_line(log.read_text())}")
            try:
                self.ask(image)
            except httpx.HTTPError:
                time.sleep(0.2)
            else:
                return
        raise ServerError(f"gave no answer within {START_S} s: {_last_line(log.read_text())}")

    def ask(self, image: EncodedImage) -> dict[int, float]:
        """Classify an image, and return the logits of the most probable classes by index."""
        kind, body = self.server.body(image)
        headers = {"Content-Type": kind}
        answer = httpx.post(self.url, content=body, headers=headers, timeout=30, trust_env=False)
        reply = answer.raise_for_status().json()
        first = reply[0] if isinstance(reply, list) else reply.get("results", [reply])[0]
        return {one["class_id"]: one["logit"] for one in first["predictions"]}

    def memory_mib(self) -> float:
        """Return the memory that would be freed if its processes ended."""
        return float(sum(one.memory_full_info().uss for one in self._family()) / 2**20)

    def stop(self) -> None:
        """Terminate the server, and kill the processes that remain."""
        family = self._family()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, STOP_S)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, STOP_S)
        self.process.wait()

    def _family(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def servers(repository: Path, model: str) -> list[Server]:
    """Return Coserve and its peers."""

    def peer(
        name: str,
        package: str,
        arguments: Callable[[int], list[str]],
        upload: str | None = "image",
        **variables: str,
    ) -> Server:
        requirements = HERE / f"requirements-{package}.txt"
        return Server(name, package, "/classify", upload, arguments, requirements, variables)

    serve = ["coserve", "serve", "--repository", str(repository.resolve()), "--default-model", model]
    return [
        Server(
            "Coserve",
            "coserve",
            "/v1/classify",
            "files",
            lambda port: [*serve, "--port", str(port)],
            # The others do not limit the number of waiting requests.
            variables={"COSERVE_ACCESS_LOG": "false", "COSERVE_MAX_REQUESTS": "1000"},
        ),
        peer("FastAPI", "fastapi", lambda port: ["python", "with_fastapi.py", str(port)]),
        peer("LitServe", "litserve", lambda port: ["python", "with_litserve.py", str(port)]),
        peer(
            "Mosec",
            "mosec",
            lambda port: ["python", "with_mosec.py", "--address", "127.0.0.1", "--port", str(port)],
            upload=None,
        ),
        peer(
            "BentoML",
            "bentoml",
            lambda port: [*("bentoml", "serve", "with_bentoml:Classifier"), "--port", str(port)],
            BENTOML_DO_NOT_TRACK="True",
        ),
        peer(
            "Ray Serve",
            "ray",
            lambda port: ["python", "with_ray.py", str(port)],
            RAY_USAGE_STATS_ENABLED="0",
            RAY_SERVE_THROUGHPUT_OPTIMIZED="1",
        ),
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")
