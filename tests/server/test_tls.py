import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from coserve_server.errors import TlsError
from coserve_server.settings import load_settings
from coserve_server.tls import server_context


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two certificates and their keys; the first key also encrypted with the password `sesame`."""
    folder = tmp_path_factory.mktemp("pem")
    authority = trustme.CA()
    contents = {"authority": authority.cert_pem.bytes(), "nonsense": b"nonsense"}
    for name in ("mine", "yours"):
        issued = authority.issue_cert("localhost")
        contents[name] = issued.cert_chain_pems[0].bytes()
        contents[f"{name}_key"] = issued.private_key_pem.bytes()
    key = load_pem_private_key(contents["mine_key"], None)
    contents["locked_key"] = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"sesame")
    )
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def context(**settings: Any) -> ssl.SSLContext | None:
    return server_context(load_settings(repository="unused", **settings))


def test_a_whole_pair_makes_a_safe_context(pem: dict[str, Path]) -> None:
    assert context() is None
    made = context(tls_certificate=pem["mine"], tls_key=pem["mine_key"])
    assert made is not None
    assert made.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert made.verify_mode is ssl.CERT_NONE
    made = context(tls_certificate=pem["mine"], tls_key=pem["locked_key"], tls_key_password="sesame")
    assert made is not None
    mutual = context(
        tls_certificate=pem["mine"], tls_key=pem["mine_key"], tls_client_authorities=pem["authority"]
    )
    assert mutual is not None
    assert mutual.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("files", "password", "fault"),
    [
        (("mine", "yours_key"), None, "tls_key: {1} is not the key of the certificate in {0}"),
        (("nonsense", "mine_key"), None, "tls_certificate: {0} has no certificate in PEM format"),
        (("mine_key", "mine"), None, "tls_certificate: {0} has no certificate in PEM format"),
        (("mine", "nonsense"), None, "tls_key: {1} has no private key in PEM format"),
        (("mine", "locked_key"), None, "tls_key: {1} is encrypted, and tls_key_password is not its password"),
        (
            ("mine", "locked_key"),
            "open",
            "tls_key: {1} is encrypted, and tls_key_password is not its password",
        ),
        (
            ("mine", "mine_key", "nonsense"),
            None,
            "tls_client_authorities: {2} has no certificate in PEM format",
        ),
    ],
)
def test_unusable_files_are_named(
    pem: dict[str, Path], files: tuple[str, ...], password: str | None, fault: str
) -> None:
    paths = [pem[name] for name in files]
    names = ("tls_certificate", "tls_key", "tls_client_authorities")
    with pytest.raises(TlsError) as caught:
        context(**dict(zip(names, paths, strict=False)), tls_key_password=password)
    assert str(caught.value) == fault.format(*paths)
