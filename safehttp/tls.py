"""The process safetls: the other end of HTTPS. What comes out of it goes to safehttp, which it never hears of.

It has the key of the server's certificate, in memory; and it tells the web service which certificate a client has
proved to have, before the first byte of a request.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable

from safehttp.orders import SILENT_SECONDS, follow, run
from safekit.bus.front import PIECE, Channel, FrameError, Order, Told, unpacked
from safekit.process.tasks import Beside
from safekit.wire.tls import Keys, context_of

NAME = "safetls"
HANDSHAKE_SECONDS = 10.0
"""Then a connection without a handshake is closed: it may be somebody who wants all descriptors."""
CLOSE_SECONDS = 5.0
"""For what was answered last to reach who asked, and for his good bye."""
END_SECONDS = 0.3
"""The same when the web service has ended."""
MAX_KEYS = 4 << 20


class Tls:
    """Connections of HTTPS. A connection keeps the keys with which it began."""

    def __init__(self, tell: Callable[[Told], Awaitable[None]]) -> None:
        self._give = tell
        self._context: ssl.SSLContext | None = None
        self._beside = Beside()

    def take(self, order: Order, descriptors: list[int]) -> None:
        """Do as the web service says. Raises FrameError, TlsError."""
        match order.op, descriptors:
            case "keys", [file]:
                self._context = context_of(_keys(file))
            case "serve", [outer, inner] if self._context is not None:
                sockets = socket.socket(fileno=outer), socket.socket(fileno=inner)
                self._beside.start(self._serve(order.number, *sockets, self._context))
            case _:
                raise FrameError(f"the order {order.op} with {len(descriptors)} descriptors")

    async def _tell(self, told: Told) -> bool:
        """False when the web service has ended, and this process is about to."""
        try:
            await self._give(told)
        except OSError:
            return False
        return True

    async def _serve(self, number: int, outer: socket.socket, inner: socket.socket, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=PIECE)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                outer,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=CLOSE_SECONDS,
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is one
            outer.close()
            inner.close()
            why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else ""
            await self._tell(Told("refused", number, why=why))
            return
        proved = transport.get_extra_info("ssl_object").getpeercert(True) or b""
        if not await self._tell(Told("shaken", number, base64.b64encode(proved).decode())):
            transport.abort()
            inner.close()
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        back, forth = await asyncio.open_connection(sock=inner, limit=PIECE)
        await self._between(reader, forth, back, writer)

    async def _between(
        self,
        reader: asyncio.StreamReader,
        forth: asyncio.StreamWriter,
        back: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Until either side has ended; then the other one ends too."""
        ways = [asyncio.create_task(_pass(reader, forth)), asyncio.create_task(_pass(back, writer))]
        seconds = CLOSE_SECONDS
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # this process ends
            seconds = END_SECONDS
            raise
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            forth.transport.abort()
            writer.close()
            try:
                async with asyncio.timeout(seconds):
                    await writer.wait_closed()
            except TimeoutError:  # he does not take the rest
                writer.transport.abort()
            except OSError:
                pass  # he has gone


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, TimeoutError):  # one of both ends has gone, which ends the connection
        while data := await source.read(PIECE):
            target.write(data)
            async with asyncio.timeout(SILENT_SECONDS):
                await target.drain()


def _keys(descriptor: int) -> Keys:
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return unpacked(Keys, file.read(MAX_KEYS))


async def _serve(orders: socket.socket) -> None:
    await follow(orders, Tls(Channel(orders).give).take)


def main() -> int:
    """Serve until the web service ends."""
    return run(NAME, _serve)


if __name__ == "__main__":
    sys.exit(main())
