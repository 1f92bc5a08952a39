"""Copies of module messages for the systemd journal, with fields to search by:

journalctl SAFEKIT_MODULE=db SAFEKIT_CODE=failover_no_heartbeat
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Final

SOCKET: Final = Path("/run/systemd/journal/socket")
NOTICE, INFORMATION = 5, 6
#: Seconds after which a journal that was not there is looked for again.
AGAIN: Final = 60.0


class Journal:
    """One per process. The module log is the record; a journal that is away or full costs its copy only."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._next_try = 0.0

    def send(self, message: str, priority: int, fields: Mapping[str, str]) -> None:
        """Never waits, never raises. Field names are in capitals; values have no line breaks."""
        if monotonic() < self._next_try:
            return
        lines = {"MESSAGE": message, "PRIORITY": str(priority), **fields}
        data = "".join(f"{name}={value.translate(_ONE_LINE)}\n" for name, value in lines.items())
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.connect(str(self._path))
            self._socket.send(data.encode("utf-8", "replace"), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._next_try = monotonic() + AGAIN
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.close()
                self._socket = None


_ONE_LINE = str.maketrans("\r\n", "  ")
