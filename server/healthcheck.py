"""Check a container's health: `python healthcheck.py /healthz` succeeds if the gateway responds with 200.

It uses the address in the gateway's settings, and prints the request and the response.
"""

import ipaddress
import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

TIMEOUT_S = 4
MAX_BYTES = 2000
VARIABLES = {name.upper(): value for name, value in os.environ.items()}
"""The server takes their names in any case."""


def main(path: str) -> None:
    """Ask for a path, and exit with status 1 if the gateway is not well."""
    file = read_file()
    encrypted = bool(setting(file, "tls_certificate"))
    host = find_host(setting(file, "host"))
    # For a Service named coserve, Kubernetes sets tcp://ADDRESS:PORT, which the server ignores too.
    port = find_port(setting(file, "port")) or find_port(str(file.get("port", "8000")))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        # Proxies are bypassed.
        if encrypted:
            context = make_context()
            connection: HTTPConnection = HTTPSConnection(host, int(port), timeout=TIMEOUT_S, context=context)
        else:
            connection = HTTPConnection(host, int(port), timeout=TIMEOUT_S)
        well, answer = ask(connection, path)
    except ssl.SSLError as error:
        well = False
        answer = str(error)
        # A lost connection, or bytes that are not TLS, come from no gateway that works.
        if setting(file, "tls_client_authorities") and "_ALERT_" in (error.reason or ""):
            # A gateway that refuses the certificate is alive.
            well = path == "/healthz"
            answer = (
                f"it requires a client's certificate ({answer}); set COSERVE_HEALTHCHECK_CERTIFICATE and "
                "COSERVE_HEALTHCHECK_KEY to the files of one that it accepts"
            )
    except (OSError, ValueError, HTTPException) as error:
        well = False
        answer = str(error) or type(error).__name__
    scheme = "https" if encrypted else "http"
    print(f"GET {scheme}://{address}{path}: {answer}", file=sys.stdout if well else sys.stderr)
    sys.exit(not well)


def setting(file: dict[str, object], name: str) -> str:
    """Return a variable, or else the file's value; an empty variable counts as not set."""
    return VARIABLES.get(f"COSERVE_{name.upper()}") or str(file.get(name, ""))


def read_file() -> dict[str, object]:
    """Return the settings in the file that COSERVE_CONFIG names."""
    if not (name := VARIABLES.get("COSERVE_CONFIG")):
        return {}
    try:
        import tomllib

        return tomllib.loads(Path(name).read_text("utf-8-sig"))
    # The server itself reports what is wrong with the file.
    except (ImportError, OSError, ValueError):
        return {}


def find_port(text: str) -> str:
    """Return a port as the server reads it, so that " 9000 " and "9000.0" are 9000; empty for other text."""
    try:
        number = float(text)
    except ValueError:
        return ""
    return str(int(number)) if number.is_integer() else ""


def find_host(host: str) -> str:
    """Return an address that reaches a server on `host`: loopback, if that is every address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host or "127.0.0.1"
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"


def make_context() -> ssl.SSLContext:
    """Trust any certificate: they name the server as clients know it, not by its address in the container."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # With TLS 1.3, a refused client may learn of it after the handshake, as a lost connection.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if certificate := VARIABLES.get("COSERVE_HEALTHCHECK_CERTIFICATE"):
        try:
            context.load_cert_chain(certificate, VARIABLES.get("COSERVE_HEALTHCHECK_KEY") or None)
        except OSError as error:
            raise ValueError(
                f"COSERVE_HEALTHCHECK_CERTIFICATE and _KEY cannot be used: {error.strerror or error}"
            ) from error
    return context


def ask(connection: HTTPConnection, path: str) -> tuple[bool, str]:
    """Return whether the response is 200, and what it says."""
    if connection.port == 0:
        raise ValueError("port 0 lets the gateway choose one, which only its log names; set COSERVE_PORT")
    connection.request("GET", path)
    response = connection.getresponse()
    text = " ".join(response.read(MAX_BYTES).decode(errors="replace").split())
    return response.status == 200, f"{response.status} {text}"


if __name__ == "__main__":
    main(sys.argv[1])
