"""From states to messages: one message per event, by the server that can tell it. Pure.

A failover makes a dozen changes on two servers; a person wants one message, after it has ended. So changes settle
first, and one server speaks: the one that runs the application now, or the one that ran it last when no other server
was there to take it over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

SERVING = frozenset({"ALONE", "PRIM", "UP"})
HOUR = 3600.0


@dataclass(frozen=True)
class View:
    """A module as one server sees it. `since`: Unix time of state and colour; `verdict`: its word."""

    module: str
    mode: str
    state: str
    color: str
    since: float
    remote_state: str = ""
    verdict: str = ""
    reason: str = ""
    next_step: str = ""
    down: tuple[str, ...] = ()
    """Resources that are down."""

    @property
    def serves(self) -> bool:
        return self.state in SERVING and self.color == "green"


@dataclass(frozen=True)
class Event:
    """What happened: the module before and after, and the states it went through."""

    before: View
    after: View
    began: float
    path: tuple[str, ...]


@dataclass
class Watched:
    """One module. `calm` is what was told last (or found at the start)."""

    calm: View
    last: View
    began: float = 0.0
    changed: float = 0.0
    path: list[str] = field(default_factory=list)


def _differs(one: View, other: View) -> bool:
    return (one.state, one.color, one.verdict) != (other.state, other.color, other.verdict)


@dataclass
class Events:
    """Follows all modules. Times are Unix seconds."""

    settle: float
    _modules: dict[str, Watched] = field(default_factory=dict)

    def see(self, views: Sequence[View], now: float) -> list[Event]:
        """The modules now; the events that have settled. What is found at the start is no event."""
        found = []
        for view in views:
            known = self._modules.get(view.module)
            if known is None:
                self._modules[view.module] = Watched(view, view)
                continue
            if _differs(view, known.last):
                known.began = known.began or now
                known.changed = now
                if not known.path or known.path[-1] != f"{view.state} {view.color}":
                    known.path.append(f"{view.state} {view.color}")
            known.last = view
            # Scripts and reintegrations take minutes; a module that never comes to rest is told all the same.
            waits = view.color == "magenta" and now - known.began < 30 * self.settle
            if known.began and now - known.changed >= self.settle and not waits:
                if _differs(view, known.calm):
                    found.append(Event(known.calm, view, known.began, tuple(known.path)))
                self._modules[view.module] = Watched(view, view)
        for gone in self._modules.keys() - {view.module for view in views}:
            del self._modules[gone]
        return found


def speaks(event: Event) -> bool:
    """Whether this server tells the event: see above. A secondary that comes or goes is told by its primary, which sees
    its verdict change."""
    before, after = event.before, event.after
    if after.state in SERVING:
        return True
    if before.mode == "farm" or after.mode in ("farm", "light"):
        return True  # each server of a farm is its own service
    passed_on = before.remote_state == "SECOND" or after.remote_state in SERVING
    return (before.state in SERVING and not passed_on) or after.verdict == "data at risk"


def headline(event: Event, node: str, peer: str) -> str:
    """What happened in a few words."""
    before, after = event.before, event.after
    name, other = after.module, peer or "the other server"
    if after.state == "ALONE" and (before.state == "SECOND" or "SECOND green" in event.path):
        return f"{name} failed over from {other} to {node}"
    if after.state == "PRIM" and before.state == "SECOND":
        return f"{name} runs on {node} now, {other} is its secondary"
    if after.state == "ALONE" and before.state == "PRIM":
        return f"{name} runs on {node} alone: {other} cannot take over"
    if after.state == "PRIM":
        return f"{name} is protected: {node} runs it, {other} can take over"
    if after.state in SERVING and before.state in SERVING:
        return f"{name} on {node}: {after.verdict}"
    if after.state in SERVING:
        return f"{name} runs on {node}"
    if before.state in SERVING:
        return f"{name} does not run on {node} any more ({after.state})"
    return f"{name} on {node}: {after.verdict or after.state}"


@dataclass
class Limit:
    """At most `per_hour` messages about a module; what is beyond is counted and told with the next one."""

    per_hour: int
    _sent: dict[str, deque[float]] = field(default_factory=dict)
    _skipped: dict[str, int] = field(default_factory=dict)

    def take(self, module: str, now: float) -> int | None:
        """None: not now. Else the number of events that were passed over before this one."""
        sent = self._sent.setdefault(module, deque())
        while sent and now - sent[0] >= HOUR:
            sent.popleft()
        if len(sent) >= self.per_hour:
            self._skipped[module] = self._skipped.get(module, 0) + 1
            return None
        sent.append(now)
        return self._skipped.pop(module, 0)

    def owed(self, now: float) -> list[str]:
        """Modules with events that were passed over and may be told now: a storm must not end in silence."""
        return [
            name for name in self._skipped
            if not self._sent.get(name) or now - self._sent[name][0] >= HOUR
        ]  # fmt: skip


__all__ = ["Event", "Events", "Limit", "View", "headline", "speaks"]
