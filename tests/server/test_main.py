import asyncio
import socket

from coserve_server.transport.binding import bind


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
