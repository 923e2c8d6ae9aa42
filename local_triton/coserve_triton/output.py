"""Read what a Triton server prints, and find the errors in it."""

import re
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress

from coserve_triton.staging import EXIT_TIMEOUT_S

LOCK_LOST = "boost::interprocess::lock_exception"
STARTED = '"Started HTTPService at '
STARTED_TIMEOUT_S = 1.0
"""Time to wait for `STARTED` once the server answers; options can silence it."""


class Output:
    """A context manager that passes on what a server prints, and remembers the errors."""

    # `E1124 13:04:08.315170 26135 model_lifecycle.cc:642] "text"`, and the server's last line `error: text`.
    ERROR = re.compile(r'(?:E\d{4} \S+ \d+ model_\w+\.cc:\d+\] "(?P<model>.*)"|error: (?P<last>.*))$')
    NAMED = re.compile(
        r"(?:Poll failed for model directory '(?P<folder>[^']+)': "
        r"|Invalid argument: ensemble '?(?P<ensemble>[^ ']+)'? )(?P<reason>.*)"
    )

    def __init__(self, process: "subprocess.Popen[str]", log: Callable[[str], None]) -> None:
        """Prepare to read; `log` is called with every line, in another thread."""
        self._process = process
        self._log = log
        self._models: list[str] = []
        self._last = "its log says why"
        self._started = threading.Event()
        self.lock_lost = False
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Output":
        """Begin to read."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Read to the end."""
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def reason(self) -> str:
        """Return why the server ended: the models that failed, or else its last error."""
        self._thread.join(EXIT_TIMEOUT_S)
        # An ensemble repeats its members' errors.
        models = [text for text in self._models if "which has no loaded version" not in text]
        return "; ".join(dict.fromkeys(models)) or self._last

    def failures(self) -> dict[str, str]:
        """Return, for a server that answers, why models were not even tried: by name."""
        self._started.wait(STARTED_TIMEOUT_S)
        found = [match for text in self._models if (match := self.NAMED.match(text))]
        # An ensemble's error repeats its member's.
        return {
            match["folder"] or match["ensemble"]: match["reason"].split(". Model '")[0] for match in found
        }

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # Keep reading when nobody reads the log any more: a full pipe would stop Triton.
            with suppress(OSError):
                self._log(line.rstrip("\n"))
            self.lock_lost |= LOCK_LOST in line
            if STARTED in line:
                self._started.set()
            found = self.ERROR.match(line.rstrip())
            if found and found["model"]:
                self._models.append(first_lines(found["model"].replace(r"\n", "\n")))
            elif found:
                self._last = found["last"]


def first_lines(reason: str) -> str:
    """Return Triton's reason why a model failed on one line, without the Python backend's traceback."""
    return " ".join(reason.split("\n\nAt:")[0].split())
