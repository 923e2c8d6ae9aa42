import asyncio
import socket
import sys

import pytest

from coserve_server.errors import SettingsError
from coserve_server.main import serve
from coserve_server.settings import load_settings
from coserve_server.transport.binding import bind


def test_without_its_libraries_grpc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc_health", None)
    for name in [
        name for name in sys.modules if name.startswith(("coserve_server.api.grpc", "grpc_health."))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "coserve_server.transport.grpc_server", raising=False)
    with pytest.raises(SettingsError, match=r"grpc_port: .* pip install 'coserve\[server\]' \(.*grpc_health"):
        asyncio.run(serve(load_settings(repository="unused", port=0, grpc_port=0)))


def test_answers_are_not_held_back_until_the_client_acknowledges() -> None:
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms on every connection kept alive."""

    async def nodelay() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bind("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(connected, sock=listener) as server:
                _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                option = await asyncio.wait_for(accepted, 60)
                writer.close()
                await writer.wait_closed()
        return option

    assert asyncio.run(nodelay()) != 0
