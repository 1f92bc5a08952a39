"""From resources to the data points of KairosDB, and the buffer in which they wait. Pure.

A metric is `safekit.` and the name of the resource, with the tags module and node. KairosDB draws numbers only: a value
that is a word is sent as text under that name, and as a number under the name with `.number` after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safekit.disk.resources import Resource

REPEAT_SECONDS = 60.0
"""So that a graph has no holes where nothing changes."""
MAX_POINTS = 20_000
BATCH = 1000
NUMBERS = {
    "STOP": 0,
    "WAIT": 1,
    "ALONE": 2,
    "UP": 3,
    "PRIM": 4,
    "SECOND": 5,
    "unknown": 0,
    "init": 1,
    "up": 2,
    "down": 3,
    "red": 0,
    "magenta": 1,
    "green": 2,
    "grey": 3,
    "off": 0,
    "on": 1,
}
"""Frozen; the same as in the MIB."""

Point = dict[str, Any]


def points_of(resource: Resource, module: str, node: str, milliseconds: int) -> Iterator[Point]:
    """The points of one value at one time."""
    name = f"safekit.{resource.name}"
    base = {"timestamp": milliseconds, "tags": {"module": module, "node": node}}
    number = _number(resource.value)
    if number is not None:
        yield {"name": name, "value": number, **base}
        return
    yield {"name": name, "type": "string", "value": resource.value, **base}
    if resource.value in NUMBERS:
        yield {"name": f"{name}.number", "value": NUMBERS[resource.value], **base}


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value and abs(value) < 1e300 else None


@dataclass
class Changes:
    """What was sent of one module. Times are Unix seconds."""

    module: str
    node: str
    _known: dict[str, Resource] = field(default_factory=dict)
    _repeated: float = 0.0

    def see(self, resources: Mapping[str, Resource], now: float) -> list[Point]:
        """Points of what changed since the last call; of everything when a minute has passed."""
        points: list[Point] = []
        for resource in resources.values():
            known = self._known.get(resource.name)
            if known is None or (known.value, known.since) != (resource.value, resource.since):
                # A date before the last repetition would stand behind it in the graph.
                date = resource.since if known is not None and resource.since > self._repeated else now
                points += points_of(resource, self.module, self.node, int(date * 1000))
        self._known = dict(resources)
        if now - self._repeated >= REPEAT_SECONDS:
            self._repeated = now
            points = [p for r in resources.values() for p in points_of(r, self.module, self.node, int(now * 1000))]
        return points


@dataclass
class Buffer:
    """Points that wait; the oldest go when it is full."""

    dropped: int = 0
    _waiting: deque[Point] = field(default_factory=deque)

    def add(self, points: list[Point]) -> None:
        self._waiting.extend(points)
        while len(self._waiting) > MAX_POINTS:
            self._waiting.popleft()
            self.dropped += 1

    def batch(self) -> list[Point]:
        """The next ones to send; they stay until `sent`."""
        return [self._waiting[index] for index in range(min(BATCH, len(self._waiting)))]

    def sent(self, batch: list[Point]) -> None:
        """They have arrived, or nobody will ever take them. A full buffer may have lost some."""
        for point in batch:
            if self._waiting and self._waiting[0] is point:
                self._waiting.popleft()

    def __len__(self) -> int:
        return len(self._waiting)
