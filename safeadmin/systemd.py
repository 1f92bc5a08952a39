"""The readiness protocol of systemd: datagrams to NOTIFY_SOCKET, when there is one."""

from __future__ import annotations

import contextlib
import os
import socket


class Notifier:
    """Takes NOTIFY_SOCKET out of the environment, so that no child speaks in our name."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")

    def tell(self, *assignments: str) -> None:
        """Send assignments such as READY=1 or STATUS=text. Without systemd nothing happens."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # A service manager that is busy or gone must not hold up the daemon.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.5)
            sock.sendto("\n".join(assignments).encode(), address)

    def ready(self, status: str) -> None:
        """The service answers from now on."""
        self.tell("READY=1", f"STATUS={status}")

    def stopping(self, status: str, seconds: float) -> None:
        """The service stops, and may need this long."""
        self.tell("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")
