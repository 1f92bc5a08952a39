"""Whether pages that the kernel has of a file are good when it is opened again."""

from __future__ import annotations

from typing import Final

#: Inodes whose pages the kernel may keep across opens; more are simply read again.
MAX_KEPT: Final = 65536


class Pages:
    """Of one mount. A generation is the time between two changes of role: the files change in between."""

    def __init__(self) -> None:
        self._kept: set[int] = set()
        self._generation = -1

    def good(self, inode: int, generation: int) -> bool:
        """Whether the file was opened before in this generation; from now on it was."""
        if self._generation != generation or len(self._kept) > MAX_KEPT:
            self._kept = set()
            self._generation = generation
        known = inode in self._kept
        self._kept.add(inode)
        return known

    def void(self, inode: int) -> None:
        """What is written now, pages of another name of the file do not show."""
        self._kept.discard(inode)
