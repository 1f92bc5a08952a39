"""Connections of the web service: accepted here, read by safetls and safehttp, answered by the application.

This process reads no byte that a stranger sends but what safehttp made of it, in frames of known kinds and bounds
(safekit/bus/front.py). Whence a connection came, to which port, and which certificate its client has proved, is known
here and not from safehttp.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import errno
import os
import socket
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion11, RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from safekit.bus.front import AnswerHead, FrameError, Kind, Link, Order, RequestHead, Told, packed, unpacked
from safekit.process.tasks import Beside
from safekit.wire import tls
from safewebserver.identity import Strangers
from safewebserver.settings import conf_dir
from safewebserver.workers import AGAIN_SECONDS, NotStarted, Worker

BACKLOG = 256
LOOK_SECONDS = 2.0
HANDSHAKE_SECONDS = 15.0
"""More than safetls takes for one."""
FULL_SECONDS = 1.0
"""After which a connection is accepted again when there was no descriptor for it."""
TELL_SECONDS = 60.0
"""Between two lines about it."""
CLOSE_SECONDS = 2.0
END_SECONDS = 10.0
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def _say(text: str) -> None:
    print(f"safewebserver: {text}", flush=True)


@dataclass(frozen=True)
class Connection:
    """What is known of a connection. `certificate`: DER, proved in the handshake."""

    local: Any
    remote: Any
    secure: bool
    certificate: bytes | None = None


class Transport(asyncio.Transport):
    """What handlers ask of a connection, in aiohttp's words."""

    def __init__(self, connection: Connection, link: Link) -> None:
        about = {"sockname": connection.local, "peername": connection.remote, "certificate": connection.certificate}
        super().__init__(about)
        self._link = link

    def abort(self) -> None:
        """End the connection at once."""
        self._link.close()


class _Protocol:
    """What aiohttp's requests ask of the connection that they came through."""

    def __init__(self, connection: Connection, link: Link) -> None:
        self.transport = Transport(connection, link)
        self.peername, self.sockname = connection.remote, connection.local
        self.ssl_context = object() if connection.secure else None


class _Body:
    """The body of a request: safehttp sends it when somebody begins to read."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._wanted = self._over = False

    async def iter_chunked(self, _: int) -> AsyncIterator[bytes]:
        """Its pieces, of at most PIECE bytes. Raises ConnectionResetError when the rest does not come, FrameError."""
        if not self._wanted:
            self._wanted = True
            await self._link.send(Kind.WANT)
        while not self._over:
            if data := await self._next():
                yield data

    async def rest(self) -> None:
        """Throw away what was sent and not read."""
        while self._wanted and not self._over:
            try:
                await self._next()
            except ConnectionResetError:
                return

    async def _next(self) -> bytes:
        frame = await self._link.receive()
        match frame:
            case (Kind.DATA, data):
                return data
            case (Kind.END, _):
                self._over = True
                return b""
            case None | (Kind.BROKEN, _):
                self._over = True
                raise ConnectionResetError("the body has not arrived")
        raise FrameError(f"{frame[0].name} within a body")

    def at_eof(self) -> bool:
        """Whether all of it was read."""
        return self._over


class _Writer(AbstractStreamWriter):
    """Where an answer is written to: what belongs to HTTP itself, safehttp does."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def write_headers(self, status_line: str, headers: CIMultiDict[str]) -> None:
        _, status, reason = status_line.split(" ", 2)
        close = headers.get("Connection", "").lower() == "close"
        await self._link.send(Kind.ANSWER, packed(AnswerHead(int(status), reason, tuple(headers.items()), close)))

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        if chunk:
            await self._link.send(Kind.DATA, chunk)

    async def write_eof(self, chunk: bytes = b"") -> None:
        await self.write(chunk)
        await self._link.send(Kind.END)

    async def drain(self) -> None:
        await self._link.drained()

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        raise NotImplementedError("answers are compressed before")

    def enable_chunking(self) -> None:
        """That of safehttp."""


class Conversation:
    """The requests of one connection, one after the other. `idle`: none is being answered."""

    def __init__(self, connection: Connection, link: Link, server: web.Server) -> None:
        self._protocol = _Protocol(connection, link)
        self._link = link
        self._server = server
        self.idle = True

    async def run(self) -> None:
        """Until the connection ends. Raises FrameError."""
        while (frame := await self._link.receive()) is not None:
            kind, data = frame
            if kind is not Kind.REQUEST:
                raise FrameError(f"{kind.name} where a request begins")
            self.idle = False
            await self._answer(unpacked(RequestHead, data))
            self.idle = True

    async def _answer(self, head: RequestHead) -> None:
        body = _Body(self._link)
        request = self._server.request_factory(
            _message(head),
            cast(Any, body),
            cast(Any, self._protocol),
            _Writer(self._link),
            cast(Any, asyncio.current_task()),
        )
        try:
            response = await self._server.request_handler(request)
        except web.HTTPException as error:
            response = error
        await response.prepare(request)
        await response.write_eof()
        await body.rest()


def _message(head: RequestHead) -> RawRequestMessage:
    """A request as aiohttp's parser would have made it. Raises FrameError."""
    path, _, query = head.target.partition("#")[0].partition("?")
    try:
        url = URL.build(path=path, query_string=query, encoded=True)
        headers = CIMultiDictProxy(CIMultiDict(head.headers))
        raw = tuple(
            (k.encode("utf-8", "surrogateescape"), v.encode("utf-8", "surrogateescape")) for k, v in head.headers
        )
    except ValueError as error:
        raise FrameError(str(error)) from None
    return RawRequestMessage(head.method, head.target, HttpVersion11, headers, raw, False, None, False, False, url)


def _nothing_to_tell(told: Told) -> None:
    """Of safehttp: that a client has proved a certificate, safetls alone may say. Raises FrameError."""
    raise FrameError(f"it says {told.op!r}, which it may not")


class Front:
    """The ports, the two processes, and all connections."""

    def __init__(self, server: web.Server, say: Callable[[str], None] = _say) -> None:
        self._server = server
        self._say = say
        self._http = Worker("safehttp", "safehttp.main", _nothing_to_tell, lambda: self._lost(self._http))
        self._tls = Worker("safetls", "safehttp.tls", self._heard, lambda: self._lost(self._tls))
        self._keys: tls.Keys | None = None
        self._stamp: object = None
        self._shaking: dict[int, asyncio.Future[Told | None]] = {}
        self._number = 0
        self._listening: list[socket.socket] = []
        self._accepting = Beside()
        self._connections = Beside()
        self._talking: dict[asyncio.Task[None], Conversation] = {}
        self._closing = False
        self._strangers = Strangers(lambda text: print(f"safewebserver: {text}", file=sys.stderr, flush=True))

    async def start(self, *, secure: bool) -> None:
        """Start the processes; safetls with `secure` only. Raises TlsError, OSError, NotStarted."""
        if not secure:
            await self._http.start()
            return
        self._stamp = tls.stamp(conf_dir())
        self._keys = await asyncio.to_thread(tls.server_keys, conf_dir())
        await asyncio.gather(self._http.start(), self._tls.start())
        await self._give_keys(self._keys)

    def listen(self, port: int, *, secure: bool = False) -> None:
        """Accept at a port, of IPv4 and, where the system has it, IPv6. Raises OSError."""
        for sock in _listening(port):
            self._listening.append(sock)
            self._accepting.start(self._accept(sock, secure))

    async def _accept(self, listening: socket.socket, secure: bool) -> None:
        loop, told = asyncio.get_running_loop(), float("-inf")
        while True:
            try:
                sock, remote = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _FULL:
                    if loop.time() - told > TELL_SECONDS:
                        told = loop.time()
                        self._say(f"no connection can be accepted for now: {error.strerror}")
                    await asyncio.sleep(FULL_SECONDS)
                continue  # else who connected has gone again
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._connections.start(self._serve(sock, Connection(sock.getsockname(), remote, secure)))

    async def _serve(self, sock: socket.socket, connection: Connection) -> None:
        """One connection from its begin to its end."""
        ours, theirs = socket.socketpair()
        try:
            if connection.secure:
                sock, connection = await self._shaken(sock, connection)
            with sock, theirs:
                await self._http.give(Order("serve"), (sock.fileno(), theirs.fileno()))
        except (ConnectionError, OSError):  # a refused handshake, or a process that has ended, which is told there
            ours.close()
            theirs.close()
            sock.close()
            return
        link = await Link.of(ours)
        talk = Conversation(connection, link, self._server)
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._talking[task] = talk
        try:
            await talk.run()
        except ConnectionError:
            pass  # who asked has gone
        except FrameError as error:
            self._say(f"safehttp says what it may not: {error}")
        except Exception:
            traceback.print_exc(file=sys.stderr)
        finally:
            del self._talking[task]
            link.close()

    async def _shaken(self, sock: socket.socket, connection: Connection) -> tuple[socket.socket, Connection]:
        """The inner side of a connection of HTTPS, when safetls has shaken hands. Raises OSError."""
        self._number += 1
        number = self._number
        found = self._shaking[number] = asyncio.get_running_loop().create_future()
        inner, outer = socket.socketpair()
        try:
            with sock, outer:
                await self._tls.give(Order("serve", number), (sock.fileno(), outer.fileno()))
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                told = await found
            if told is None or told.op != "shaken":
                raise ConnectionError("no handshake")
            proved = base64.b64decode(told.certificate, validate=True) or None
        except (OSError, TimeoutError, binascii.Error) as error:
            inner.close()
            raise ConnectionError(str(error)) from None
        except BaseException:
            inner.close()
            raise
        finally:
            del self._shaking[number]
        return inner, Connection(connection.local, connection.remote, True, proved)

    # The processes

    def _heard(self, told: Told) -> None:
        if told.op == "refused" and told.why:
            self._strangers.refused("a client certificate", told.why, time.monotonic())
        future = self._shaking.get(told.number)
        if future is not None and not future.done():
            future.set_result(told)

    def _lost(self, worker: Worker) -> None:
        if worker is self._tls:
            for future in self._shaking.values():
                if not future.done():
                    future.set_result(None)
        if not self._closing:
            self._accepting.start(self._again(worker))

    async def _again(self, worker: Worker) -> None:
        status = await worker.ended()
        print(f"safewebserver: {worker.name} has ended ({status}); it is started again", file=sys.stderr, flush=True)
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            try:
                await worker.start()
            except (OSError, NotStarted) as error:
                self._say(f"{worker.name} cannot be started: {error}")
                continue
            if worker is self._tls and self._keys is not None:
                with contextlib.suppress(ConnectionError):  # it has ended again, and `_lost` begins anew
                    await self._give_keys(self._keys)
            return

    async def _give_keys(self, keys: tls.Keys) -> None:
        descriptor = os.memfd_create("keys", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, packed(keys))
            await self._tls.give(Order("keys"), (descriptor,))
        finally:
            os.close(descriptor)

    # Certificates

    async def follow(self) -> None:
        """Look at the files of certificates until this task is cancelled. New connections get what is new; those that
        there are go on."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Take files that changed. What does not fit together is told, and the former ones stay in use."""
        stamp = tls.stamp(conf_dir())
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = await asyncio.to_thread(tls.server_keys, conf_dir())
        except tls.TlsError as error:
            self._say(f"the certificates were changed and cannot be used, the former ones stay in use: {error}")
            return
        try:
            await self._give_keys(self._keys)
        except OSError:
            return  # it has ended, and is given them when it is started again
        self._say("the certificates were changed; new connections use them")

    async def close(self) -> None:
        """Listen no more; what is being answered has CLOSE_SECONDS. After END_SECONDS in all, the end of this process
        ends what is left."""
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._close()
        except TimeoutError:
            text = f"safehttp and safetls did not end within {END_SECONDS:g} s; they end with this process"
            print(f"safewebserver: {text}", file=sys.stderr, flush=True)

    async def _close(self) -> None:
        self._closing = True
        await self._accepting.end()
        for sock in self._listening:
            sock.close()
        for task, talk in list(self._talking.items()):
            if talk.idle:
                task.cancel()
        if busy := [task for task, talk in self._talking.items() if not talk.idle]:
            await asyncio.wait(busy, timeout=CLOSE_SECONDS)
        await self._connections.end()
        await asyncio.gather(self._http.ended(), self._tls.ended())


def _listening(port: int) -> list[socket.socket]:
    """A socket for IPv4 and, where the system has it, one for IPv6. Raises OSError."""
    found = [socket.create_server(("", port), backlog=BACKLOG)]
    if socket.has_dualstack_ipv6():
        try:
            found.append(socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:  # IPv6 is there and switched off
                found[0].close()
                raise
    for sock in found:
        sock.setblocking(False)
    return found
