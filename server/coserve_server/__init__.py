"""Serves ensembles whose members run concurrently.

`serve` runs the server, `create_app` is for other ASGI servers, and `open_app` for programs that mount it in
an application. All take `Settings`, which `load_settings` reads and checks. Their errors are in
`coserve_server.errors`. The names are imported when they are first used, because others import parts of this
package and need no web framework.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# ONNX Runtime's official Linux builds have sent usage data since 1.29; it reads this variable on import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULES = {
    "Settings": "settings",
    "create_app": "main",
    "load_settings": "settings",
    "open_app": "main",
    "serve": "main",
}

__all__ = list(_MODULES)

if TYPE_CHECKING:
    from coserve_server.main import create_app as create_app
    from coserve_server.main import open_app as open_app
    from coserve_server.main import serve as serve
    from coserve_server.settings import Settings as Settings
    from coserve_server.settings import load_settings as load_settings
else:
    # Hidden from type checkers, so that they report unknown names.
    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
