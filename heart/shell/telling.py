"""What heartbeats say for people, and when they were sent.

The decisions of both servers are told in the heartbeats, so that `safekit why` has one time line.

Each server sends its decisions, oldest first, a few in each heartbeat, until the other has acknowledged them:
what was decided while the networks were cut arrives after they are repaired. Nothing is decided by it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from heart.core.values import Decided, Reason

REMEMBERED = 4096
"""Heartbeats whose time is remembered: more than are sent in a time-out."""
KEPT = 200
"""Decisions that wait for an acknowledgement, at most; the oldest are given up."""
AT_ONCE = 5
MAX_CHARACTERS = 1000
"""In one heartbeat, so that it stays one datagram on the wire."""
PEER_FILE = "peer.jsonl"


class Telling:
    """What this server has to tell, and what it has heard."""

    def __init__(self, directory: Path) -> None:
        self._waiting: deque[Decided] = deque(maxlen=KEPT)
        self._number = 0
        self.seen = _last_number(directory / PEER_FILE)

    def add(self, reasons: Iterable[Reason], detail: Callable[[str], tuple[str, float]]) -> tuple[Decided, ...]:
        """Decisions of this server; `detail` tells who set an input, and when."""
        made = []
        for reason in reasons:
            # numbers grow over restarts too
            self._number = max(self._number + 1, int(time.time() * 1000))
            inputs = tuple((name, value, *detail(name)) for name, value in reason.inputs)
            made.append(Decided(self._number, time.time(), reason.rule, reason.outcome, inputs))
        self._waiting.extend(made)
        return tuple(made)

    def pending(self) -> tuple[Decided, ...]:
        """What the next heartbeat says."""
        said: list[Decided] = []
        size = 0
        for item in itertools.islice(self._waiting, AT_ONCE):
            size += len(item.rule) + len(item.outcome) + sum(len(n) + len(v) + len(s) for n, v, s, _ in item.inputs)
            if said and size > MAX_CHARACTERS:
                break
            said.append(item)
        return tuple(said)

    def acknowledged(self, number: int) -> None:
        """The peer has everything up to `number`."""
        while self._waiting and self._waiting[0].number <= number:
            self._waiting.popleft()

    def fresh(self, heard: Iterable[Decided]) -> tuple[Decided, ...]:
        """Those of a heartbeat that were not heard before."""
        new = tuple(item for item in heard if item.number > self.seen)
        if new:
            self.seen = max(item.number for item in new)
        return new


class Sent:
    """The heartbeats that were sent lately: what the peer echoes tells until when it has heard this server."""

    def __init__(self, incarnation: int) -> None:
        self._incarnation = incarnation
        self._times: deque[float] = deque(maxlen=REMEMBERED)
        self.sequence = 0

    def another(self, now: float) -> None:
        """The next one is about to be sent."""
        self.sequence += 1
        self._times.append(now)

    def when(self, echo: tuple[int, int]) -> float | None:
        """When the heartbeat was sent that the peer names as (incarnation, sequence); None for one of another heart,
        or so old that it confirms nothing."""
        incarnation, sequence = echo
        back = self.sequence - sequence
        if incarnation != self._incarnation or not 0 <= back < len(self._times):
            return None
        return self._times[-1 - back]


def _last_number(path: Path) -> int:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["number"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0
