"""How far a reintegration is, how fast it goes, and how long it will take."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from safekit.bus.requests.nfsadmin import Progress

WINDOW_S = 3.0


class Share:
    """What one file is of the whole: counted once and whole at its end, whatever became of it. For one thread."""

    def __init__(self, meter: Meter, weight: int) -> None:
        self._meter = meter
        self._left = weight

    def done(self, size: int) -> None:
        """`size` bytes of its data are equal now."""
        size = min(size, self._left)
        self._left -= size
        self._meter.compared(size)

    def end(self) -> None:
        """It is dealt with."""
        self.done(self._left)


class Meter:
    """Counts what is compared and copied. Safe from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin = clock()
        self._lock = threading.Lock()
        self._files = self._files_total = self._bytes = self._bytes_total = self._copied = 0
        self._counted = False
        self._recent: deque[tuple[float, int, int]] = deque()

    def found(self, size: int) -> None:
        """A file whose content has to be looked at, with `size` bytes of data to compare or copy."""
        with self._lock:
            self._files_total += 1
            self._bytes_total += size

    def counted(self) -> None:
        """The whole tree was seen: the totals are final."""
        with self._lock:
            self._counted = True

    def compared(self, size: int) -> None:
        """`size` bytes are equal now."""
        with self._lock:
            self._bytes += size
            self._note()

    def copied(self, size: int) -> None:
        """`size` bytes were sent."""
        with self._lock:
            self._copied += size
            self._note()

    def finished(self) -> None:
        """A file is equal now."""
        with self._lock:
            self._files += 1

    def _note(self) -> None:
        now = self._clock()
        self._recent.append((now, self._bytes, self._copied))
        while self._recent[0][0] < now - WINDOW_S and len(self._recent) > 2:
            self._recent.popleft()

    def progress(self) -> Progress:
        """A consistent picture."""
        with self._lock:
            now = self._clock()
            done = copied = 0.0
            if self._recent:
                span = max(now - self._recent[0][0], 0.25)
                done = (self._bytes - self._recent[0][1]) / span
                copied = (self._copied - self._recent[0][2]) / span
            rest = self._bytes_total - self._bytes
            left = rest / done if self._counted and done > 0 else 0.0 if self._counted and rest <= 0 else None
            return Progress(
                self._files,
                self._files_total,
                self._bytes,
                self._bytes_total,
                self._copied,
                self._counted,
                round(copied / 1024, 1),
                None if left is None else round(left, 1),
                round(now - self._begin, 1),
            )
