"""What the web service and the two processes that strangers speak to, safehttp and safetls, say to each other.

The web service accepts connections, so that it knows of each whence it came and to which port; it reads none of them.
safetls has the bytes of HTTPS, safehttp those of HTTP. For each connection safehttp has a socket to the web service
for what it read there, the frames below. So whatever it was made to do, it can only ask what somebody connected asks,
as he would be answered: who that is and what he may do, the web service finds out itself, with every request.

    safehttp                    web service
    REQUEST  RequestHead   ->
                           <-   WANT               the body, if any; else it is never sent
    DATA, DATA, ... END    ->                      BROKEN instead of END: the rest does not come
                           <-   ANSWER AnswerHead, DATA, DATA, ... END
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from safekit.model.codec import CodecError, from_json, to_data

MAX_FRAME = 256 << 10
"""Of a request's head: more than that is no request of ours. Bodies come in pieces of PIECE bytes."""
PIECE = 64 << 10
MAX_METHOD = 32
_LENGTH = struct.Struct(">cI")

Headers = tuple[tuple[str, str], ...]
T = TypeVar("T")


class FrameError(Exception):
    """The other process says what it may not."""


class Kind(Enum):
    """What a frame holds."""

    REQUEST = b"R"
    WANT = b"W"
    DATA = b"D"
    END = b"E"
    BROKEN = b"B"
    ANSWER = b"A"


@dataclass(frozen=True)
class RequestHead:
    """A request without its body. `target` begins with /, and has the query as it was sent."""

    method: str
    target: str
    headers: Headers

    def __post_init__(self) -> None:
        """Raises CodecError."""
        if not (self.target.startswith("/") and 0 < len(self.method) <= MAX_METHOD and self.method.isascii()):
            raise CodecError("this is no head of a request")


@dataclass(frozen=True)
class AnswerHead:
    """An answer without its body. `close`: nothing more is asked on this connection."""

    status: int
    reason: str
    headers: Headers
    close: bool


@dataclass(frozen=True)
class Order:
    """To safehttp and safetls, with descriptors: `serve` a connection, use `keys` from now on."""

    op: str
    number: int = 0


@dataclass(frozen=True)
class Told:
    """By both: `ready` for orders. By safetls: `shaken` hands with the connection of that number, and what certificate
    (base64 of DER, "" for none) was proved; or `refused` it, and why."""

    op: str
    number: int = 0
    certificate: str = ""
    why: str = ""


def packed(value: object) -> bytes:
    """A dataclass as bytes. Headers may have halves of characters: they are kept."""
    return json.dumps(to_data(value), separators=(",", ":")).encode()


def unpacked(kind: type[T], data: bytes) -> T:
    """Raises FrameError for what is none."""
    try:
        return from_json(kind, data)
    except CodecError as error:
        raise FrameError(str(error)) from None


class Link:
    """One end of the socket of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._begun: tuple[Kind, int] | None = None

    @classmethod
    async def of(cls, sock: socket.socket) -> Link:
        """The end that is this socket."""
        return cls(*await asyncio.open_connection(sock=sock, limit=MAX_FRAME))

    async def receive(self) -> tuple[Kind, bytes] | None:
        """The next frame; None at the end. When it is cancelled, nothing is lost. Raises FrameError."""
        try:
            if self._begun is None:
                kind, length = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                if length > MAX_FRAME:
                    raise FrameError(f"a frame of {length} bytes")
                self._begun = Kind(kind), length
            data = await self._reader.readexactly(self._begun[1])
            found, self._begun = self._begun[0], None
            return found, data
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except ValueError as error:
            raise FrameError(str(error)) from None

    def put(self, kind: Kind, data: bytes = b"") -> None:
        """Send a frame as soon as there is room. Raises ConnectionResetError when the other end has gone."""
        if self._writer.is_closing():
            raise ConnectionResetError("the connection has ended")
        self._writer.write(_LENGTH.pack(kind.value, len(data)) + data)

    async def drained(self) -> None:
        """Until there is room for more. Raises ConnectionResetError."""
        await self._writer.drain()

    async def send(self, kind: Kind, data: bytes | bytearray | memoryview = b"") -> None:
        """Send a frame; several ones for long data. Raises ConnectionResetError."""
        view = memoryview(data)
        for begin in range(0, max(len(view), 1), PIECE):
            self.put(kind, bytes(view[begin : begin + PIECE]))
            await self.drained()

    def close(self) -> None:
        """No more of it; what was not sent is lost."""
        self._writer.transport.abort()


class Channel:
    """A socket of messages with descriptors (SOCK_SEQPACKET), which is not waited for by anybody else."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self._turn = asyncio.Lock()
        self._room: asyncio.Future[None] | None = None
        self._closed = False

    async def give(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send a dataclass as soon as there is room. Raises OSError when the other end has gone, or this one."""
        loop, data = asyncio.get_running_loop(), packed(message)
        async with self._turn:
            while not self._closed:
                with contextlib.suppress(BlockingIOError):
                    socket.send_fds(self.sock, [data], descriptors)
                    return
                self._room = loop.create_future()
                loop.add_writer(self.sock, self._has_room)
                await self._room
        raise ConnectionError("the other process has ended")

    def _has_room(self) -> None:
        asyncio.get_running_loop().remove_writer(self.sock)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def close(self) -> None:
        """No more of it; once is enough."""
        if not self._closed:
            self._closed = True
            self._has_room()
            asyncio.get_running_loop().remove_reader(self.sock)
            self.sock.close()
