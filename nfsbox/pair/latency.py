"""Figures of the replication: how long changes wait for the secondary (which costs the waiting thread a microsecond),
what was sent to it, and how much a second."""

from __future__ import annotations

import bisect
from collections import deque
from typing import Any, Final

from nfsbox.pair.stream import Stream

BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Seconds. What reads the figures shows a count up to each of them."""


AVERAGE: Final = 3
"""Bandwidth is an average over this many seconds (guide 13.6.4.7)."""


class Latency:
    """Counts since nfsbox started. Threads that note at the same moment may lose a count: nothing depends on it."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0

    def note(self, seconds: float) -> None:
        """A change was acknowledged after so long."""
        self._counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self._sum += seconds

    def told(self) -> dict[str, Any]:
        """For the file of figures."""
        return {"bounds": BOUNDS, "counts": list(self._counts), "sum": round(self._sum, 6)}


class Totals:
    """What was sent over all streams; each stream counts from zero."""

    def __init__(self) -> None:
        self._before = (0, 0)
        self._now = (0, 0)
        self._identity = 0

    def add(self, stream: Stream | None) -> tuple[int, int]:
        """Operations and bytes up to now. Called every few seconds: what a stream sent after the last call before its
        end is not counted."""
        identity = stream.identity if stream is not None else 0
        if identity != self._identity:
            self._before = (self._before[0] + self._now[0], self._before[1] + self._now[1])
            self._identity, self._now = identity, (0, 0)
        if stream is not None:
            self._now = (stream.channel.sent, stream.channel.bytes_sent)
        return self._before[0] + self._now[0], self._before[1] + self._now[1]


class Bandwidth:
    """Of the replication and of the reintegration, in KB/s: an average over the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque(maxlen=AVERAGE + 1)
        self.shown = (0, 0)
        """Replication, reintegration."""

    def stop(self) -> None:
        """Nothing is sent: what comes next begins anew."""
        self._samples.clear()

    def add(self, replicated: int, reintegrated: int) -> bool:
        """Bytes that the stream has sent up to now; call every second. A stream counts from zero. Whether `shown` is
        another one now."""
        self._samples.append((replicated, reintegrated))
        first, last = self._samples[0], self._samples[-1]
        seconds = max(1, len(self._samples) - 1)
        before = self.shown
        self.shown = (
            max(0, (last[0] - first[0]) // seconds // 1024),
            max(0, (last[1] - first[1]) // seconds // 1024),
        )
        return self.shown != before
