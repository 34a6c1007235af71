"""Talks to websocket_server.py and checks all that comes back. Arguments: URI."""
import asyncio
import os
import sys

import websockets


async def main():
    async with websockets.connect(sys.argv[1], max_size=8 << 20, subprotocols=["echo"]) as socket:
        assert socket.subprotocol == "echo", socket.subprotocol
        for message in ["text", "", "ünïcödé", b"\x00\xff", os.urandom(4 << 20)]:
            await socket.send(message)
            assert await asyncio.wait_for(socket.recv(), 20) == message, "an echo that differs"
        await asyncio.wait_for(await socket.ping(b"are you there"), 20)
        for n in range(500):
            await socket.send(str(n))
        for n in range(500):
            assert await asyncio.wait_for(socket.recv(), 20) == str(n), "out of order"
        await socket.send("bye")
        await asyncio.wait_for(socket.wait_closed(), 20)
        assert (socket.close_code, socket.close_reason) == (4001, "as asked"), socket.close_code
    print("all messages as they should be")


asyncio.run(main())
