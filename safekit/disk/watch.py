"""Wake up when something in a directory changes (pyinotify), with a bound, without a thread."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import TracebackType

import pyinotify

_MASK = (
    pyinotify.IN_MOVED_TO | pyinotify.IN_CLOSE_WRITE | pyinotify.IN_MODIFY | pyinotify.IN_CREATE | pyinotify.IN_DELETE
)


class DirectoryWatch:
    """Watches one directory, not its children. The events only say `look again`: what happened is read from
    the files, so that a queue overflow loses nothing."""

    def __init__(self, directory: Path, mask: int = _MASK) -> None:
        self.directory = directory
        self.mask = mask
        self._changed = asyncio.Event()
        self._manager: pyinotify.WatchManager | None = None
        self._notifier: pyinotify.Notifier | None = None

    def __enter__(self) -> DirectoryWatch:
        self._manager = pyinotify.WatchManager()
        self._notifier = pyinotify.Notifier(self._manager, timeout=0)
        with contextlib.suppress(pyinotify.WatchManagerError):
            # A directory that does not exist yet is covered by the caller's interval.
            self._manager.add_watch(str(self.directory), self.mask, quiet=False)
        asyncio.get_running_loop().add_reader(self._manager.get_fd(), self._drain)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._notifier is not None and self._manager is not None:
            asyncio.get_running_loop().remove_reader(self._manager.get_fd())
            self._notifier.stop()

    def _drain(self) -> None:
        assert self._notifier is not None
        self._notifier.read_events()
        self._notifier._eventq.clear()
        self._changed.set()

    async def wait(self, timeout: float) -> bool:
        """Return at the next change, or False after `timeout` seconds."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except TimeoutError:
            return False
        self._changed.clear()
        return True
