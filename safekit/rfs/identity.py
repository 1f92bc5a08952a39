"""What a file is, as long as it lives: the number of its inode, and a generation that tells it from all files that had
that number before (R10). Pure; `system.generation` asks the file system.

A kernel gives the number of a removed file to the next one, at once. The handle of a file (name_to_handle_at) holds
what the file system itself tells them apart by; nobody has to remember or to forget anything for it, and it outlives
every process, and a power failure together with its file.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Identity(NamedTuple):
    """`generation` 0: unknown, as a release before tells it."""

    inode: int
    generation: int = 0

    def same(self, other: Identity) -> bool:
        """Whether both may be one file: a generation that is unknown proves nothing against it."""
        return self.inode == other.inode and (
            self.generation == other.generation or not self.generation or not other.generation
        )


#: No file.
NOBODY: Final = Identity(0)
