"""Serves ensembles whose members run concurrently.

`serve` runs the server; `create_app` is for other ASGI servers; both take `Settings`, which `load_settings`
reads and checks. Their errors are in `coserve_server.errors`.
"""

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime's official Linux builds send usage data since 1.29; they read this when imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from coserve_server.main import create_app, serve
    from coserve_server.settings import Settings, load_settings

__all__ = ["Settings", "create_app", "load_settings", "serve"]


def __getattr__(name: str) -> Any:
    # Imported when first used: others import parts of this package without needing a web framework.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from coserve_server import main

    return getattr(main, name)
