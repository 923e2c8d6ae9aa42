"""Check a container's health: `python healthcheck.py /healthz` succeeds if the gateway responds with 200."""

import os
import ssl
import sys
import urllib.request
from http.client import HTTPException

scheme = "https" if os.environ.get("COSERVE_TLS_CERTIFICATE") else "http"
port = os.environ.get("COSERVE_PORT", "")
if not port.isdecimal():
    # For a Service named coserve, Kubernetes sets tcp://ADDRESS:PORT, which the server ignores too.
    port = "8000"
# The certificate is for the names that clients use, not for 127.0.0.1.
context = ssl._create_unverified_context()  # noqa: S323
direct = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
)
try:
    direct.open(f"{scheme}://127.0.0.1:{port}{sys.argv[1]}", timeout=4).close()
except (OSError, HTTPException) as error:
    sys.exit(f"{sys.argv[1]}: {error}")
