"""What the end of a resynchronisation waits for: entries that must be compared again."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from safekit.rfs.identity import Identity


@dataclass
class Revisit:
    """Entries that must be compared again before a resynchronisation can end: (root, path) -> also below it. doubts:
    files whose content the secondary may lack, although it was found equal before."""

    entries: dict[tuple[int, bytes], bool] = field(default_factory=dict)
    doubts: set[tuple[int, Identity]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, root: int, path: bytes, *, recursive: bool = False) -> None:
        """From any thread: one that adds the entry alone must not undo that another asked for what is below it."""
        with self._lock:
            self.entries[root, path] = recursive or self.entries.get((root, path), False)

    def doubt(self, root: int, file: Identity) -> None:
        """The secondary may lack what was written to a file."""
        with self._lock:
            self.doubts.add((root, file))

    def take_doubts(self) -> set[tuple[int, Identity]]:
        """Take the doubts. Behind the entries: a doubt is noted before its entry."""
        with self._lock:
            taken, self.doubts = self.doubts, set()
        return taken

    def take(self, most: int) -> dict[tuple[int, bytes], bool]:
        """Take entries off the list."""
        with self._lock:
            taken = dict(list(self.entries.items())[:most])
            for key in taken:
                del self.entries[key]
        return taken
