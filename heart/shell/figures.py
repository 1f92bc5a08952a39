"""What monitoring is told of heart: heartbeats that came and did not, take-overs and how long they took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from heart.core.values import Color, Role

LATE_PULSES = 1.5
"""A heartbeat that comes after so many pulses follows one that did not come."""
SMOOTHING = 16
"""Of the mean deviation, as in RFC 3550."""


@dataclass
class Arrivals:
    """Heartbeats of one link. Times are monotonic seconds."""

    pulse: float
    received: int = 0
    lost: int = 0
    jitter: float = 0.0
    last: float = 0.0

    def note(self, now: float) -> None:
        """One has come."""
        if self.received:
            gap = now - self.last
            if gap > LATE_PULSES * self.pulse:
                self.lost += max(1, round(gap / self.pulse) - 1)
            else:
                self.jitter += (abs(gap - self.pulse) - self.jitter) / SMOOTHING
        self.received += 1
        self.last = now

    def told(self, now: float, refused: int) -> dict[str, Any]:
        """For the file. Those that are overdue now are not counted as lost yet: the age tells them."""
        age = round(now - self.last, 3) if self.received else None
        jitter = round(self.jitter, 6)
        return {"received": self.received, "lost": self.lost, "jitter": jitter, "age": age, "refused": refused}


@dataclass
class TakeOvers:
    """Changes of the state, and take-overs: a secondary that became alone. Times are monotonic seconds."""

    role: Role = Role.STOP
    color: Color = Color.RED
    changes: int = 0
    count: int = 0
    seconds: float = 0.0
    at: float = 0.0
    _from: float = 0.0

    def note(self, role: Role, color: Color, heard: float, now: float, date: float) -> None:
        """The state after an event. `heard`: when the other server was heard last, 0 for never; `date`: Unix time."""
        if (role, color) == (self.role, self.color):
            return
        if role is not self.role:
            self.changes += 1
            if (self.role, role) == (Role.SECOND, Role.ALONE):
                self._from = min(heard or now, now)
            elif role is not Role.ALONE:
                self._from = 0.0
        self.role, self.color = role, color
        if self._from and color is Color.GREEN:
            self.count += 1
            self.seconds, self.at, self._from = now - self._from, date, 0.0

    def told(self) -> dict[str, Any]:
        """For the file."""
        found: dict[str, Any] = {"role_changes": self.changes, "failovers": self.count}
        if self.count:
            found |= {"last_failover_seconds": round(self.seconds, 3), "last_failover_at": round(self.at, 3)}
        return found
