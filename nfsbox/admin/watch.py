"""Notices at once that a process ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class Watch:
    """Calls `ended(pid)` once when process `pid` ends, unless closed before. Raises ProcessLookupError when it has
    ended already."""

    def __init__(self, pid: int, ended: Callable[[int], None]) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)
        self._ended = ended
        asyncio.get_running_loop().add_reader(self._descriptor, self._readable)

    def _readable(self) -> None:
        self.close()
        self._ended(self.pid)

    def close(self) -> None:
        """Stop watching."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
