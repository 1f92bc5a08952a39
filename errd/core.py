"""When is a death an event? Pure: no clock, no process table.

A class is enabled after its start script and disabled before its stop script. A <proc> that was seen in order
is judged at once when that changes. One that has not been in order yet since it was enabled gets the time that
the polling of the guide gives it: (start_after - 1) polls, at least one; an application may take a while to
show its processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from safekit.model.types import Proc


class Criterion(Enum):
    """What is wrong with the number of processes; the words are those of the log message."""

    ATLEAST = "atleast"
    ATMAX = "atmax"


@dataclass(frozen=True, slots=True)
class Watch:
    """A <proc> as it is watched. `judged_from` is the time before which a first lack is not an event."""

    proc: Proc
    enabled: bool = False
    seen: bool = False
    raised: Criterion | None = None
    judged_from: float = 0.0


def breach(proc: Proc, count: int) -> Criterion | None:
    """The criterion that `count` running processes violate."""
    if proc.atleast >= 0 and count < proc.atleast:
        return Criterion.ATLEAST
    if proc.atmax >= 0 and count > proc.atmax:
        return Criterion.ATMAX
    return None


def enable(watch: Watch, now: float, polltimer: float) -> Watch:
    """The class of this <proc> was enabled: start from nothing seen."""
    polls = max(watch.proc.start_after - 1, 1)
    return Watch(watch.proc, enabled=True, judged_from=now + polls * polltimer)


def resume(watch: Watch, seen: bool, now: float, polltimer: float) -> Watch:
    """Enabled already when errd was killed: what was in order then is judged at once."""
    return replace(enable(watch, now, polltimer), seen=seen)


def disable(watch: Watch) -> Watch:
    """The class of this <proc> was disabled: what dies now is meant to."""
    return Watch(watch.proc)


def judge(watch: Watch, count: int, now: float) -> tuple[Watch, Criterion | None]:
    """Look at a count. The event, once per breach; the watch afterwards."""
    if not watch.enabled:
        return watch, None
    found = breach(watch.proc, count)
    if found is None:
        return replace(watch, seen=True, raised=None), None
    if found is watch.raised:
        return watch, None
    if found is Criterion.ATLEAST and not watch.seen and now < watch.judged_from:
        return watch, None
    return replace(watch, raised=found), found


def resource_value(watch: Watch) -> str:
    """Value of proc.<name>: init while nothing is known."""
    if not watch.enabled:
        return "init"
    if watch.raised is not None:
        return "down"
    return "up" if watch.seen else "init"
