"""A client that still sends gets the response to a request that is refused, on a real socket."""

import asyncio
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
import trustme

from coserve_server.transport import connections
from tests.server.transport.test_idle import Client, Connect, run

BODY = bytes(20_000_000)
"""More than the system's buffers hold."""
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
REFUSED = {
    "no HTTP": (b"nonsense\r\n" + BODY, 400),
    "no HTTP after two requests": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2 + b"nonsense\r\n" + BODY, 400),
    "no host": (HEAD.replace(b"Host: a\r\n", b"") + BODY, 400),
    "CONNECT": (HEAD.replace(b"POST / ", b"CONNECT a:1 ") + BODY, 405),
    "a long head": (HEAD[:-2] + b"A: " + b"a" * len(BODY), 431),
    "a long target": (b"GET /" + b"a" * len(BODY), 431),
}


def upload(client: Client, data: bytes) -> bytes:
    """Send everything, and only then read the response; raise if the server resets the connection.

    Linux keeps a response that came before the reset, but a client's library or another system may drop it.
    """
    with socket.socket(fileno=client.writer.get_extra_info("socket").dup().detach()) as own:
        own.settimeout(30)
        own.sendall(data)
        answer = b""
        while piece := own.recv(65536):
            answer += piece
    return answer


async def is_refused(connect: Connect, data: bytes, status: int) -> None:
    client = await connect()
    client.writer.transport.pause_reading()
    answer = await asyncio.to_thread(upload, client, data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:100]
    assert answer.endswith(b"}"), "the whole response"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give clients time, on a busy machine too."""
    monkeypatch.setattr(connections, "LINGER_S", 60)


@pytest.mark.parametrize("name", REFUSED)
def test_whoever_sends_what_is_refused_learns_why(name: str) -> None:
    async def test(connect: Connect) -> None:
        for _ in range(5):
            await is_refused(connect, *REFUSED[name])

    run(test)


def test_whoever_sends_over_tls_learns_why_too(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    def upload_securely(address: tuple[str, int]) -> bytes:
        with (
            socket.create_connection(address, 30) as plain,
            trusting.wrap_socket(plain, server_hostname="127.0.0.1") as own,
        ):
            own.sendall(REFUSED["no host"][0])
            return own.recv(65536)

    async def test(connect: Connect) -> None:
        address = (await connect()).writer.get_extra_info("peername")
        for _ in range(5):
            assert (await asyncio.to_thread(upload_securely, address)).startswith(b"HTTP/1.1 400 ")

    run(test, certificate=str(certificate))


@pytest.mark.parametrize("extra", [0, connections.EXTRA_CONNECTIONS])
def test_whoever_comes_when_there_is_no_room_learns_it(extra: int) -> None:
    async def test(connect: Connect) -> None:
        for _ in range(1 + extra):
            (await connect()).writer.write(b"GET")
        await asyncio.sleep(0.1)
        for _ in range(5):
            await is_refused(connect, HEAD + BODY, 503)

    run(test, max_connections=1)


def test_refused_clients_take_no_room_from_others() -> None:
    async def test(connect: Connect) -> None:
        for _ in range(3):
            # It does not close the connection.
            assert b" 400 " in await (await connect()).ask("nonsense nonsense")
        assert b" 200 " in await (await connect()).ask()

    run(test, max_connections=1)


def test_a_refused_client_must_close_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_S", 0.5)

    async def test(connect: Connect) -> None:
        client = await connect()
        assert b" 400 " in await client.ask("nonsense nonsense")
        begin = time.monotonic()
        while not client.writer.transport.is_closing():
            client.writer.write(b"more")
            await asyncio.sleep(0.02)
        assert time.monotonic() > begin + 0.4

    run(test)


def test_only_so_many_refused_clients_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_LINGERING", 2)

    async def test(connect: Connect) -> None:
        clients = [await connect() for _ in range(3)]
        for client in clients:
            assert b" 400 " in await client.ask("nonsense nonsense")
            await client.reader.read()
        await asyncio.sleep(0.1)
        for client in clients:
            client.writer.write(b"more")
        await asyncio.sleep(0.1)
        closed = []
        for client in clients:
            client.writer.write(b"more")
            await asyncio.sleep(0.05)
            closed.append(client.writer.transport.is_closing())
        assert closed == [False, False, True]

    run(test)


def test_a_refused_client_is_not_told_to_go_on(caplog: pytest.LogCaptureFixture) -> None:
    """Its request was given to the application, which asks for the body later than it was refused."""

    async def test(connect: Connect) -> None:
        client = await connect()
        client.writer.write(CHUNKED[:-2] + b"Expect: 100-continue\r\n\r\nno chunk\r\n")
        answer = await client.reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b" 100 " not in answer

    run(test)
    assert "write_eof" not in caplog.text


def test_a_refused_client_is_never_the_idlest() -> None:
    async def test(connect: Connect) -> None:
        client = await connect()
        client.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET")
        assert b" 200 " in await client.reader.readuntil(b"\r\n\r\n")
        assert b" 408 " in await client.reader.read()
        await connect()
        assert b" 503 " in await (await connect()).ask()

    run(test, max_connections=1, head_timeout_ms=300)


@pytest.mark.parametrize("refused_first", [True, False])
def test_a_server_that_stops_waits_for_no_refused_client(refused_first: bool) -> None:
    kept: list[socket.socket] = []

    async def test(connect: Connect) -> None:
        client = await connect()
        # So that the connection stays open when the client is closed.
        kept.append(client.writer.get_extra_info("socket").dup())
        client.writer.write(CHUNKED)
        if refused_first:
            client.writer.write(b"no chunk\r\n")
            assert b" 400 " in await client.reader.readuntil(b"\r\n\r\n")
        else:
            threading.Timer(1, kept[0].sendall, [b"no chunk\r\n"]).start()

    begin = time.monotonic()
    run(test)
    assert time.monotonic() < begin + 30
    assert refused_first or kept[0].recv(65536).startswith(b"HTTP/1.1 400 ")
    kept.pop().close()
