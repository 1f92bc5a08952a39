"""The ports of the web service (guide 10.5), and certificates that are renewed while it runs."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import sys
import time
from collections.abc import Callable

from aiohttp import web

from safekit.wire import tls
from safewebserver.identity import Strangers
from safewebserver.settings import conf_dir

LOOK_SECONDS = 2.0
HANDSHAKE_SECONDS = 10.0
"""Then a connection without a handshake is closed: it may be somebody who wants all descriptors."""
BACKLOG = 256


def _say(text: str) -> None:
    print(f"safewebserver: {text}", flush=True)


class Secure:
    """The HTTPS port. When a file changes, new connections get the new certificate; those that there are go on."""

    def __init__(self, runner: web.AppRunner, port: int, say: Callable[[str], None] = _say) -> None:
        self._runner = runner
        self._port = port
        self._say = say
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._stamp: object = None
        strangers = Strangers(lambda text: print(f"safewebserver: {text}", file=sys.stderr, flush=True))
        self._refused = lambda why: strangers.refused("a client certificate", why, time.monotonic())

    async def start(self) -> None:
        """Listen. Raises TlsError, OSError."""
        self._stamp = tls.stamp(conf_dir())
        context = await asyncio.to_thread(tls.server_context, conf_dir(), self._refused)
        self._sockets = _listening(self._port)
        await self._serve(context)

    async def follow(self) -> None:
        """Look at the files until this task is cancelled."""
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
            context = await asyncio.to_thread(tls.server_context, conf_dir(), self._refused)
        except tls.TlsError as error:
            self._say(f"the certificates were changed and cannot be used, the former ones stay in use: {error}")
            return
        former, self._servers = self._servers, []
        await self._serve(context)
        for server in former:
            server.close()
        self._say("the certificates were changed; new connections use them")

    async def _serve(self, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        server = self._runner.server
        assert server is not None
        for sock in self._sockets:
            # A duplicate: closing the former server closes its own, and the queue of the port belongs to both.
            self._servers.append(
                await loop.create_server(
                    server,
                    sock=sock.dup(),
                    ssl=context,
                    backlog=BACKLOG,
                    ssl_handshake_timeout=HANDSHAKE_SECONDS,
                )
            )

    async def close(self) -> None:
        """Listen no more."""
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()


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
