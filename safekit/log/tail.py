"""New lines of a log, across its rotation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from safekit.log.module import Line, parse_line


class Tail:
    """New lines of a file that is rotated by renaming. `poll` never blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: IO[bytes] | None = open(path, "rb") if path.exists() else None  # noqa: SIM115 - followed until the end
        self._partial = b""

    def skip(self) -> None:
        """Begin at the end of what is there now."""
        if self._handle is not None:
            self._handle.seek(0, os.SEEK_END)

    def poll(self) -> Iterator[Line]:
        """Lines that were appended since the last call, those of a file that has just been rotated included."""
        yield from self._drain()
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return
        if self._handle is None or os.fstat(self._handle.fileno()).st_ino != status.st_ino:
            # A line may have been appended to the old file between the read above and its renaming.
            yield from self._drain()
            if self._handle is not None:
                self._handle.close()
            self._handle = open(self.path, "rb")  # noqa: SIM115 - as above
            self._partial = b""
            yield from self._drain()

    def _drain(self) -> Iterator[Line]:
        if self._handle is None:
            return
        *whole, self._partial = (self._partial + self._handle.read()).split(b"\n")
        for data in whole:
            line = parse_line(data.decode("utf-8", "replace"))
            if line is not None:
                yield line
