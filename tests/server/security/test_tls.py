import asyncio
import logging
import os
import shutil
import ssl
import threading
import time
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

from coserve_server.configuration import find_faults
from coserve_server.engines.triton.channel import call_metadata
from coserve_server.engines.triton.engine import TritonEngine
from coserve_server.errors import SettingsError, TlsError
from coserve_server.security import tls
from coserve_server.security.tls import server_context
from coserve_server.settings import load_settings


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


def handshake(server: ssl.SSLContext, authority: Path, shown: Path | None = None) -> bytes:
    """Return the certificate that a client gets; it may show one of its own. Both ends are in memory.

    Raises:
        ssl.SSLError: an end does not trust the other's certificate.
    """
    client = ssl.create_default_context(cafile=authority)
    if shown is not None:
        client.load_cert_chain(shown, shown.with_name(f"{shown.name}_key"))
    up = ssl.MemoryBIO()
    down = ssl.MemoryBIO()
    asking = client.wrap_bio(down, up, server_hostname="localhost")
    answering = server.wrap_bio(up, down, server_side=True)
    shake_hands(asking, answering)
    got = asking.getpeercert(binary_form=True)
    assert got is not None
    return got


def shake_hands(*ends: ssl.SSLObject) -> None:
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)


def test_renewed_files_are_given_to_new_connections(
    pem: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pair = [shutil.copy(pem[name], tmp_path) for name in ("mine", "mine_key")]
    trust = Path(shutil.copy(pem["authority"], tmp_path))
    settings = load_settings(
        repository="unused", tls_certificate=pair[0], tls_key=pair[1], tls_client_authorities=trust
    )
    server = server_context(settings, interval_s=0)
    assert server is not None

    def get() -> bytes:
        return handshake(server, pem["authority"], pem["mine"])

    def der(name: str) -> bytes:
        return ssl.PEM_cert_to_DER_cert(pem[name].read_text())

    assert get() == get() == der("mine")
    assert caplog.messages == []
    shutil.copy(pem["yours"], pair[0])
    assert get() == get() == der("mine"), "the key is still the old one's"
    assert [record.levelname for record in caplog.records] == ["ERROR"], "once"
    assert f"{pair[1]} is not the key of the certificate in {pair[0]}" in caplog.text
    shutil.copy(pem["yours_key"], pair[1])
    assert get() == der("yours")
    Path(pair[1]).unlink()
    assert get() == der("yours")
    assert f"tls_key: {pair[1]} cannot be read: No such file or directory; new connections" in caplog.text
    shutil.copy(pem["yours_key"], pair[1])
    trustme.CA().cert_pem.write_to_path(trust)
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        get()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_clients_are_checked_in_every_connection(pem: dict[str, Path], version: ssl.TLSVersion) -> None:
    """A resumed session would pass by an earlier check, against authorities that may have changed."""
    server = context(
        tls_certificate=pem["mine"], tls_key=pem["mine_key"], tls_client_authorities=pem["authority"]
    )
    assert server is not None
    client = ssl.create_default_context(cafile=pem["authority"])
    client.load_cert_chain(pem["yours"], pem["yours_key"])
    client.maximum_version = version
    session = None
    for _ in range(2):
        up = ssl.MemoryBIO()
        down = ssl.MemoryBIO()
        asking = client.wrap_bio(down, up, server_hostname="localhost", session=session)
        answering = server.wrap_bio(up, down, server_side=True)
        shake_hands(asking, answering)
        answering.write(b"x")
        assert asking.read() == b"x"
        assert not asking.session_reused
        session = asking.session


def test_files_are_not_looked_at_in_every_handshake(pem: dict[str, Path], tmp_path: Path) -> None:
    pair = [shutil.copy(pem[name], tmp_path) for name in ("mine", "mine_key")]
    made = server_context(
        load_settings(repository="unused", tls_certificate=pair[0], tls_key=pair[1]), interval_s=3600
    )
    assert made is not None
    before = handshake(made, pem["authority"])
    for renewed, file in zip(("yours", "yours_key"), pair, strict=True):
        shutil.copy(pem[renewed], file)
    assert handshake(made, pem["authority"]) == before


def test_files_that_hang_hold_no_handshake(pem: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made = server_context(
        load_settings(repository="unused", tls_certificate=pem["mine"], tls_key=pem["mine_key"]), interval_s=0
    )
    assert made is not None
    answers = threading.Event()
    monkeypatch.setattr(tls, "read_stamp", lambda _: answers.wait(5))
    began = time.monotonic()
    try:
        for _ in range(3):
            assert handshake(made, pem["authority"])
        assert time.monotonic() - began < 10
    finally:
        answers.set()


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


@pytest.mark.parametrize("setting", ["tls_certificate", "tls_key", "tls_client_authorities"])
@pytest.mark.parametrize(("kind", "reason"), [("folder", "Is a directory"), ("pipe", "Not a regular file")])
def test_a_file_replaced_by_something_else_changes_nothing(
    pem: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    setting: str,
    kind: str,
    reason: str,
) -> None:
    files = {"tls_certificate": "mine", "tls_key": "mine_key", "tls_client_authorities": "authority"}
    paths = {name: shutil.copy(pem[file], tmp_path / name) for name, file in files.items()}
    config = load_settings(repository="unused", **paths)
    made = server_context(config, interval_s=0)
    assert made is not None
    paths[setting].unlink()
    os.mkfifo(paths[setting]) if kind == "pipe" else paths[setting].mkdir()
    handshake(made, pem["authority"], shown=pem["mine"])
    (message,) = caplog.messages
    assert message.startswith(f"{setting}: {paths[setting]} cannot be read: {reason}; new connections still")
    with pytest.raises(SettingsError) as caught:
        load_settings(repository="unused", **paths)
    assert caught.value.faults == [f"{setting}: {paths[setting]} cannot be read: {reason}"]


def test_a_password_that_openssl_does_not_take_is_named(pem: dict[str, Path]) -> None:
    with pytest.raises(TlsError, match=r"^tls_key_password: password cannot be longer than 1024"):
        context(tls_certificate=pem["mine"], tls_key=pem["locked_key"], tls_key_password="x" * 2000)


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"root_certificates": "nonsense"}, "triton_root_certificates: {} has no certificate in PEM format"),
        (
            {"client_certificate": "mine", "client_key": "nonsense"},
            "triton_client_key: {} has no private key in PEM format",
        ),
        (
            {"client_certificate": "mine", "client_key": "locked_key"},
            "triton_client_key: {} is encrypted, which is only possible for tls_key",
        ),
        (
            {"client_key": "mine_key", "client_certificate": "nonsense"},
            "triton_client_certificate: {} has no certificate in PEM format",
        ),
    ],
)
def test_unusable_files_for_triton_are_named_at_the_start(
    pem: dict[str, Path], tmp_path: Path, files: dict[str, str], fault: str
) -> None:
    paths = {f"triton_{name}": pem[file] for name, file in files.items()}
    config = load_settings(engine="triton", triton_url="127.0.0.1:1", triton_tls=True, **paths)
    expected = fault.format(list(paths.values())[-1])
    with pytest.raises(TlsError) as caught:
        asyncio.run(TritonEngine.connect(config))
    assert str(caught.value) == expected
    file = tmp_path / "coserve.toml"
    lines = ['engine = "triton"', 'triton_url = "127.0.0.1:1"', "triton_tls = true"]
    file.write_text("\n".join([*lines, *(f'{name} = "{path}"' for name, path in paths.items())]))
    assert list(find_faults(file)) == [expected]


def test_a_token_is_what_a_header_can_hold() -> None:
    options = {"engine": "triton", "triton_url": "127.0.0.1:1", "triton_tls": True}
    config = load_settings(**options, triton_token="secret\n")
    assert call_metadata(config) == (("authorization", "Bearer secret"),)
    for token in ("a\nb", "é", "\x00"):
        with pytest.raises(SettingsError, match="triton_token: a token is printable ASCII"):
            load_settings(**options, triton_token=token)
