"""Runs a worker, for `launch` alone: `python …/coserve_server/workers CONTROL CONNECTIONS`."""

import sys

# This folder, whose modules are not to be found by their short names.
del sys.path[0]

from coserve_server.workers.child import main  # noqa: E402

if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
