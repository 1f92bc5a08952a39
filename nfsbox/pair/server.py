"""The listening side of the replication port: the stream of the secondary and the connections of its reintegre."""

from __future__ import annotations

import contextlib
import errno
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from nfsbox.pair.engine import Engine, Refused, Role
from nfsbox.pair.resync import Context, Service
from nfsbox.pair.stream import Stream
from safekit.rfs.wire import Channel, Kind, Op, Refusal, WireError, accept, expect, refuse, welcome

log = logging.getLogger("nfsbox")

#: Connections served at once: nbrei and a few.
MAX_CONNECTIONS: Final = 64
#: How long a connected secondary may take to begin (its verdict is made meanwhile), seconds.
START: Final = 300.0


def _look_up(host: str, port: int) -> tuple[int, Any]:
    """Family and socket address. Raises OSError for a name that has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return int(found[0]), found[4]


class Server:
    """Listens on one address. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        module: str,
        keys: Callable[[], Sequence[bytes]],
        address: tuple[str, int],
        *,
        on_open: Callable[[Stream, bool], None],
        state: Callable[[], dict[str, Any] | None],
        pair: Callable[[str, int], dict[str, Any] | None],
        token: Callable[[], bytes | None],
    ) -> None:
        """Raises OSError when the address cannot be used; the text names it."""
        self._engine = engine
        self._module = module
        self._keys = keys
        self._on_open = on_open
        self._state = state
        self._pair = pair
        self._token = token
        self._context: Context | None = None
        self._lock = threading.Lock()
        self._open: set[Channel] = set()
        self._count = 0
        family, where = _look_up(*address)
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(where)
            self._socket.listen(MAX_CONNECTIONS)
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, f"cannot listen on {address[0]} port {address[1]}: {error.strerror}") from None
        self.port = self._socket.getsockname()[1]
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="listen", daemon=True)
        self._thread.start()

    def listens_elsewhere(self, host: str) -> bool:
        """Whether a name or address stands for another address than the one that is in use. Raises OSError."""
        return bool(_look_up(host, self.port)[1][0] != self._socket.getsockname()[0])

    def succeed(self, former: Server) -> None:
        """Take over from a server that listened on another address: its secondary goes on with this one."""
        self._context = former._context

    def close(self) -> None:
        """Stop listening and cut every connection."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.cut()
        self._thread.join(5)

    def cut(self) -> None:
        """Cut every connection."""
        with self._lock:
            channels, self._open = list(self._open), set()
        for channel in channels:
            channel.shutdown()

    @property
    def progress(self) -> dict[str, Any]:
        """What the secondary told of its resynchronisation."""
        context = self._context
        return dict(context.progress) if context is not None and not context.ended else {}

    def _run(self) -> None:
        while not self._closing:
            try:
                sock, _ = self._socket.accept()
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL):
                    return  # closed
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    time.sleep(0.1)  # whoever waits goes on waiting, and this does not turn in circles
                continue
            with self._lock:
                full = self._count >= MAX_CONNECTIONS
                self._count += not full
            if full:
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(sock,), name="peer", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        channel: Channel | None = None
        kept = False  # a stream belongs to the engine, which closes it
        try:
            channel, kind, hello = accept(sock, self._module, self._keys())
            with self._lock:
                self._open.add(channel)
            if kind is Kind.STREAM:
                self._stream(channel, hello)
                kept = self._kept(channel)
            elif kind is Kind.RESYNC:
                self._resync(channel, hello)
            else:
                refuse(channel, Refusal.VERSION, "not served")
        except WireError as error:
            log.debug("connection ended: %s", error.strerror)
        except OSError as error:
            log.debug("connection ended: %s", error)
        finally:
            with self._lock:
                self._count -= 1
                if channel is not None:
                    self._open.discard(channel)
            if not kept:
                sock.close()

    def _kept(self, channel: Channel) -> bool:
        stream = self._engine.stream
        return stream is not None and stream.channel is channel

    def _stream(self, channel: Channel, hello: dict[str, Any]) -> None:
        engine = self._engine
        peer = str(hello.get("node", ""))[:64]
        paired = bool(hello.get("paired"))
        exchanges = hello.get("exchanges") is True
        if engine.role is not Role.PRIMARY:
            refuse(channel, Refusal.ROLE, "this server is not primary")
            return
        old = engine.stream
        if old is not None and old.peer == peer:
            # The secondary would not connect if it still had that stream: nobody has noticed here, as nothing was sent.
            old.fail("the secondary connected again")
        if engine.stream is not None:
            refuse(channel, Refusal.BUSY, f"this server has a secondary already ({engine.stream.peer})")
            return
        if paired:
            token, offered = self._token(), hello.get("token")
            if not token or not isinstance(offered, bytes) or not secrets.compare_digest(token, offered):
                refuse(channel, Refusal.ROLE, "the hand-over is not known here: a resynchronisation is needed")
                return
        context = Context(engine, self._state, lambda server: self._pair(peer, server))
        if not paired:
            self._context = context
        try:
            if paired:
                stream = engine.attach(channel, peer, paired=True, exchanges=exchanges)
                welcome(channel, session=stream.identity, durable=engine.settings.durable)
                context.attached.set()
            else:
                # The secondary begins when it has durably noted that its data is being changed.
                welcome(channel, session=engine.expected_identity(), durable=engine.settings.durable)
                expect(channel.receive_within(START), Op.START)
                stream = context.stream = engine.attach(channel, peer, paired=False, exchanges=exchanges)
                context.attached.set()
        except Refused as error:
            raise WireError(errno.ECONNREFUSED, str(error)) from None
        self._on_open(stream, paired)

    def _resync(self, channel: Channel, hello: dict[str, Any]) -> None:
        context = self._context
        if self._engine.role is not Role.PRIMARY or context is None:
            refuse(channel, Refusal.ROLE, "this server is not primary, or the secondary is not connected to it")
            return
        welcome(channel)
        Service(channel, context).run()
