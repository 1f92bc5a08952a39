"""Where a secondary finds this server: the address on the replication network, whose name may be known later only."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Final

from nfsbox.pair.server import Server
from nfsbox.place import BoxError, Fields

log = logging.getLogger("nfsbox")

UNNAMED: Final = "unnamed"
"""Code of an address that could not be looked up."""


class Listening:
    """One per box. `serve` makes the server that listens on an address; it raises OSError."""

    def __init__(self, address: tuple[str, int] | None, serve: Callable[[tuple[str, int]], Server]) -> None:
        self._address = address
        self._serve = serve
        self._making = threading.Lock()  # whoever makes or ends the server
        self.server: Server | None = None
        self.unnamed = False
        """This server's own name on the replication network could not be looked up: nobody listens yet."""

    @property
    def progress(self) -> Fields:
        """What a secondary told of its resynchronisation."""
        server = self.server
        return server.progress if server is not None else {}

    def begin(self) -> None:
        """A name of cluster.xml that cannot be looked up now stops nobody: at the boot of a server in a cloud its DNS
        may come later. Without the name no secondary finds this server either. Raises BoxError."""
        with self._making:
            try:
                self._listen()
            except BoxError as error:
                if error.code != UNNAMED:
                    raise
                self.unnamed = True
                log.warning("no secondary can come yet: %s; tried again until it can be looked up", error.text)

    def begin_when_named(self) -> None:
        """Try again what `unnamed` tells of. May wait for the DNS, and is called from one thread. Never raises."""
        address = self._address
        if address is None:
            return
        try:
            socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        except OSError:
            return
        with self._making:
            if not self.unnamed:
                return  # ended meanwhile
            try:
                self._listen()
            except BoxError as error:
                log.warning("no secondary can come yet: %s", error.text)
                return
            self.unnamed = False
        log.info("listens on %s port %d now", *address)

    def move(self, host: str) -> None:
        """Listen there from now on; who is connected stays. Raises BoxError, OSError."""
        if self._address is None:
            return
        with self._making:
            self._address = (host, self._address[1])
            if self.server is not None and self.server.listens_elsewhere(host):
                self._listen()

    def end(self) -> None:
        """Nobody listens any more, and every connection is cut."""
        with self._making:
            self.unnamed = False
            server, self.server = self.server, None
            if server is not None:
                server.close()

    def _listen(self) -> None:
        former = self.server
        if self._address is None:
            raise BoxError("listen", "this server has no address on the network of the replication flow")
        try:
            self.server = self._serve(self._address)
        except socket.gaierror as error:
            raise BoxError(UNNAMED, f"{self._address[0]}: {error.strerror}") from None
        except OSError as error:
            raise BoxError("listen", f"{error.strerror}: another program uses it, or the address is not here") from None
        if former is not None:
            self.server.succeed(former)
            former.close()
