"""What a Triton server needs on disk while it runs, and the process that clears it all away afterwards."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from coserve_triton.installation import Installation

EXIT_TIMEOUT_S = 10
"""For requests in progress when the server is told to stop; after it and as long again, it is killed."""

MODEL = """import sys
sys.path[:0] = {path!r}  # Triton's interpreter sees neither virtual environments nor PYTHONPATH
from coserve_triton.onnxruntime_backend import TritonPythonModel
"""

# Reads the server's process id, then waits until its standard input ends: the launcher lets go, or dies.
# The state Z is that of an ended process whose parent has not asked how.
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
    """A folder of Triton backends, and a janitor: a process that clears up however this one ends.

    Entering the context fills the folder; leaving it waits until the server has ended and all is gone.

    Attributes:
        backends: has the backend `onnxruntime`, in Python.
        shm_prefix: of the names of the server's shared memory.
    """

    def __init__(self, installation: Installation) -> None:
        self._files = installation.python_backend
        folder = Path(tempfile.mkdtemp(prefix="coserve-triton-"))
        self.backends, self.shm_prefix = folder / "backends", f"{folder.name}-"
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
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._janitor.wait(3 * EXIT_TIMEOUT_S)

    def entrust(self, server: int) -> None:
        """Have the janitor stop this process, which leads a process group, before it clears up."""
        assert self._janitor.stdin is not None
        self._janitor.stdin.write(f"{server}\n")
        self._janitor.stdin.flush()

    def let_go(self) -> None:
        """Have the janitor stop the server and clear up, without waiting for it."""
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()

    def _fill(self, backend: Path) -> None:
        backend.mkdir(parents=True)
        for file in self._files:
            # Not links: Triton refuses a library that lies outside its backend's folder.
            shutil.copy(file, backend)
        path = [entry for entry in sys.path if Path(entry).is_absolute()]
        (backend / "model.py").write_text(MODEL.format(path=path), "utf-8")
