"""Echoes WebSocket messages. Arguments: port."""
import asyncio
import sys

import websockets


async def echo(socket):
    async for message in socket:
        if message == "bye":
            await socket.close(4001, "as asked")
            return
        await socket.send(message)


async def main():
    async with websockets.serve(echo, None, int(sys.argv[1]), max_size=8 << 20, subprotocols=["echo"]):
        await asyncio.Future()


asyncio.run(main())
