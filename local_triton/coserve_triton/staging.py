"""Put the files that a running Triton server needs into a temporary folder, and remove them afterwards."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from coserve_triton.errors import TritonError
from coserve_triton.installation import Installation

EXIT_TIMEOUT_S = 10
"""Time the server has to finish requests when it is told to stop; it is killed after twice this time."""

MODEL = """import sys
sys.path[:0] = {path!r}  # Triton's interpreter sees neither virtual environments nor PYTHONPATH
from coserve_triton.onnxruntime_backend import TritonPythonModel
"""

# Reads the server's process id, then waits until its standard input ends: the launcher closed it, or died.
# A process in state Z has ended, but its parent has not waited for it.
JANITOR = f"""
runs() {{
    state=$(cut -d ' ' -f 3 "/proc/$1/stat") && [ "$state" != Z ]
}}
read -r server
cat
if [ -n "$server" ]; then
    kill -s TERM "$server"
    kill -s CONT "$server"
    tenths={2 * EXIT_TIMEOUT_S * 10}
    while [ "$tenths" -gt 0 ] && runs "$server"; do
        sleep 0.1
        tenths=$((tenths - 1))
    done
    kill -s KILL -- "-$server"
fi
rm -rf -- "$0" "/dev/shm/$1"*
"""


class Staging:
    """A temporary folder, and a janitor: a process that cleans up no matter how this process ends.

    Entering the context fills the folder; leaving it waits until the server has ended and all is removed.

    Attributes:
        backends: folder of Triton backends; it has the backend `onnxruntime`, in Python.
        repository: path of the model repository that Triton can use.
        shm_prefix: prefix of the names of the server's shared memory.
    """

    def __init__(self, installation: Installation, repository: Path) -> None:
        """Make the folder and start the janitor.

        Raises:
            TritonError: Triton cannot work in the system's folder for temporary files.
        """
        temporary = tempfile.gettempdir()
        if not _is_plain(temporary):
            raise TritonError(
                f"Triton cannot start models from the temporary folder {temporary!r}: its path has a "
                "space or another character that shells treat specially; set TMPDIR to a path without any"
            )
        folder = Path(tempfile.mkdtemp(prefix="coserve-triton-", dir=temporary))
        self._files = installation.python_backend
        self._source = repository.resolve()
        self.backends = folder / "backends"
        self.repository = self._source if _is_plain(str(self._source)) else folder / "repository"
        self.shm_prefix = f"{folder.name}-"
        self._janitor = subprocess.Popen(  # noqa: S603  # a fixed script
            ["/bin/sh", "-c", JANITOR, folder, self.shm_prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            # Ctrl-C in a terminal goes to its whole process group.
            start_new_session=True,
        )

    def __enter__(self) -> "Staging":
        try:
            self._fill(self.backends / "onnxruntime")
            if self.repository != self._source:
                self.repository.symlink_to(self._source)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._janitor.wait(3 * EXIT_TIMEOUT_S)

    def entrust(self, server: int) -> None:
        """Let the janitor stop this process, which leads a process group, before it cleans up."""
        assert self._janitor.stdin is not None
        self._janitor.stdin.write(f"{server}\n")
        self._janitor.stdin.flush()

    def release(self) -> None:
        """Tell the janitor to stop the server and clean up, without waiting for it."""
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()

    def _fill(self, backend: Path) -> None:
        backend.mkdir(parents=True)
        for file in self._files:
            # Copied, not linked: Triton refuses a library outside its backend's folder.
            shutil.copy(file, backend)
        path = [entry for entry in sys.path if Path(entry).is_absolute()]
        (backend / "model.py").write_text(MODEL.format(path=path), "utf-8")


def _is_plain(path: str) -> bool:
    """Return whether a shell reads the path as it is: Triton's Python backend does not quote paths."""
    return re.fullmatch(r"[\w@%+=:,./-]+", path) is not None
