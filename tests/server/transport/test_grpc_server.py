"""gRPC's address and certificates."""

import asyncio
import datetime
import logging
import shutil
import socket
import ssl
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from grpc import StatusCode
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from coserve_server.errors import AddressError, SettingsError, TlsError
from coserve_server.security import recheck
from coserve_server.security.grpc_tls import server_credentials
from coserve_server.settings import load_settings
from coserve_server.settings.section import LONGEST_MS
from coserve_server.transport import grpc_server
from coserve_server.transport.grpc_server import GrpcServer
from tests.server.api.application import LOGITS
from tests.server.api.grpc.calls import LOCAL, Served, failure, logits, request, run, serving
from tests.server.fake_engine import ReadingEngine, ensemble


def engine() -> ReadingEngine:
    return ReadingEngine(ensemble())


def bind(**changes: Any) -> str:
    async def go() -> str:
        server = GrpcServer(load_settings(repository="unused", **changes), changes.get("grpc_port", 0))
        await server.stop(0)
        return server.address

    return asyncio.run(go())


def test_addresses() -> None:
    host, _, port = bind().rpartition(":")
    assert (host, int(port) > 0) == ("127.0.0.1", True)
    assert bind(host="::1").startswith("[::1]:")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in"):
            bind(grpc_port=port)
    with pytest.raises(AddressError, match=r"cannot listen on 192.0.2.1 port 0: "):
        bind(host="192.0.2.1", allow_public=True)
    with pytest.raises(SettingsError, match="grpc_port: 9000 is the port for HTTP"):
        load_settings(repository="unused", port=9000, grpc_port=9000)


def test_an_address_that_grpc_itself_cannot_use_has_a_reason() -> None:
    """A worker's server binds an address that the parent has tried, which another may have taken since."""

    async def go(address: str) -> None:
        with pytest.raises(AddressError) as caught:
            GrpcServer(load_settings(repository="unused"), 0, address)
        assert str(caught.value) == f"cannot listen on ::1 port {port}: Address already in use"

    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        asyncio.run(go(f"[::1]:{port}"))


def test_settings_may_be_larger_than_options_of_grpc() -> None:
    names = ("max_connections", "max_requests", "max_body_bytes")
    assert bind(**dict.fromkeys(names, 10**18), head_timeout_ms=LONGEST_MS).startswith("127.0.0.1:")


def test_two_servers_do_not_share_a_port() -> None:
    async def test(served: Served) -> None:
        port = int(served.server.address.rpartition(":")[2])
        with pytest.raises(AddressError, match="Address already in use"):
            GrpcServer(load_settings(repository="unused"), port)
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="Address already in use"):
                other.bind(("127.0.0.1", port))

    run(engine(), test)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An authority, two server certificates with their keys, a client's, an encrypted key, and an odd pair.

    gRPC does not know the odd key's kind; HTTPS does.
    """
    folder = tmp_path_factory.mktemp("pem")
    authority = trustme.CA()
    files = {"authority": folder / "authority.pem"}
    authority.cert_pem.write_to_path(files["authority"])
    for name in ("mine", "yours", "client"):
        issued = authority.issue_cert("localhost", "127.0.0.1")
        files[name] = folder / f"{name}.pem"
        files[f"{name}_key"] = folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(files[name])
        issued.private_key_pem.write_to_path(files[f"{name}_key"])
    files["encrypted"] = folder / "encrypted.key"
    key = load_pem_private_key(files["mine_key"].read_bytes(), None)
    files["encrypted"].write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame"))
    )
    odd = ec.generate_private_key(ec.SECP256K1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(subject, subject, odd.public_key(), 1, now, now + datetime.timedelta(1))
    files |= {"odd": folder / "odd.pem", "odd_key": folder / "odd.key"}
    files["odd"].write_bytes(builder.sign(odd, hashes.SHA256()).public_bytes(Encoding.PEM))
    files["odd_key"].write_bytes(odd.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def test_a_certificate_that_grpc_alone_cannot_use_is_not_the_address_s_fault(pem: dict[str, Path]) -> None:
    with pytest.raises(TlsError, match=f"^tls_certificate: gRPC cannot use {pem['odd']}: "):
        bind(tls_certificate=pem["odd"], tls_key=pem["odd_key"])


def channel(address: str, pem: dict[str, Path], *, client: bool = False) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        pem["authority"].read_bytes(),
        pem["client_key"].read_bytes() if client else None,
        pem["client"].read_bytes() if client else None,
    )
    return grpc.aio.secure_channel(address, credentials, LOCAL)


async def infer(address: str, pem: dict[str, Path], **options: Any) -> Any:
    async with channel(address, pem, **options) as secure:
        return await GRPCInferenceServiceStub(secure).ModelInfer(request(), timeout=20)


def certificate(address: str) -> bytes:
    """The certificate that a new connection gets."""
    host, _, port = address.rpartition(":")
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))


def test_renewed_files_are_given_to_new_connections(
    pem: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(grpc_server, "server_credentials", lambda settings: server_credentials(settings, 0))
    monkeypatch.setattr(recheck, "HANDSHAKE_PATIENCE_S", 20)
    pair = [Path(shutil.copy(pem[name], tmp_path / name)) for name in ("mine", "mine_key")]

    def der(name: str) -> bytes:
        return ssl.PEM_cert_to_DER_cert(pem[name].read_text())

    async def go() -> None:
        async with serving(engine(), tls_certificate=pair[0], tls_key=pair[1]) as served:
            address = served.server.address

            async def given() -> bytes:
                return await asyncio.to_thread(certificate, address)

            async with channel(address, pem) as old:
                stub = GRPCInferenceServiceStub(old)
                assert await stub.ModelInfer(request())
                assert await given() == der("mine")
                shutil.copy(pem["yours"], pair[0])
                assert await given() == der("mine"), "the key is still the old one's"
                shutil.copy(pem["yours_key"], pair[1])
                assert await given() == der("yours")
                assert caplog.text.count("use the renewed") == 1
                for name, file in zip(("odd", "odd_key"), pair, strict=True):
                    shutil.copy(pem[name], file)
                assert await given() == await given() == der("yours"), "gRPC cannot use the new one"
                assert await stub.ModelInfer(request()), "connections go on"
            np_equal = logits(await infer(address, pem)) == LOGITS
            assert np_equal.all()
            plain = await failure(served.stub.ModelInfer(request()))
            assert plain.code() is StatusCode.UNAVAILABLE

    asyncio.run(go())
    for line in (
        "is not the key of the certificate",
        "RSA and P-256 work; new connections still use the prev",
    ):
        assert caplog.text.count(line) == 1, "once"
    assert caplog.text.count("use the renewed") == 1


def test_clients_need_a_certificate_of_an_authority(pem: dict[str, Path]) -> None:
    files = {
        "tls_certificate": pem["mine"],
        "tls_key": pem["mine_key"],
        "tls_client_authorities": pem["authority"],
    }

    async def go() -> None:
        async with serving(engine(), **files) as served:
            assert await infer(served.server.address, pem, client=True)
            error = await failure(infer(served.server.address, pem))
            assert error.code() is StatusCode.UNAVAILABLE

    asyncio.run(go())


def test_an_encrypted_key(pem: dict[str, Path]) -> None:
    files = {"tls_certificate": pem["mine"], "tls_key": pem["encrypted"]}

    async def go() -> None:
        async with serving(engine(), **files, tls_key_password="open sesame") as served:
            assert await infer(served.server.address, pem)

    asyncio.run(go())
    with pytest.raises(TlsError, match="is encrypted, and tls_key_password is not its password"):
        bind(**files, tls_key_password="wrong")
    with pytest.raises(TlsError, match="is not the key of the certificate"):
        bind(tls_certificate=pem["mine"], tls_key=pem["yours_key"])


def test_a_key_that_only_mentions_encryption(pem: dict[str, Path], tmp_path: Path) -> None:
    key = tmp_path / "commented.pem"
    key.write_bytes(b"not ENCRYPTED\n" + pem["mine_key"].read_bytes())
    bind(tls_certificate=pem["mine"], tls_key=key, tls_key_password="needless")
    bind(tls_certificate=pem["mine"], tls_key=key)
