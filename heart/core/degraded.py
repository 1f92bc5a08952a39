"""ALONE degraded: nfsbox died, and the application goes on without replication (guide 5.6).

Nobody has to come for that: when the other server waits for the replication, one automatic stopstart brings it back. It
is safe, because the newest data is here and known to be, and the server that waits cannot become primary meanwhile. It
costs the application a restart, so that it is done only for a server that waits, not at once, and TRIES times at most.
"""

from __future__ import annotations

from heart.core import commands
from heart.core.turn import Turn
from heart.core.values import Color, Role

DELAY = 60.0
"""Seconds of a stable degraded state before it is ended."""
TRIES, WITHIN = 3, 24 * 3600.0
COUNT, SINCE = "state.recoveries", "state.recoveredsince"
"""Resources: how often, and when that count began (Unix time)."""


def recover(t: Turn) -> bool:
    """On a primary with nothing to do: begin the stopstart when its time has come."""
    s, peer = t.s, t.s.peer
    waited_for = peer is not None and peer.role is Role.WAIT and peer.uptodate != "up"
    stable = s.role is Role.ALONE and s.color is Color.GREEN and s.uptodate and not s.paired and not s.breaking
    if not (s.setup.rfs and s.resource("rfs.degraded") == "up" and stable and waited_for):
        s.degraded_since = 0.0
        return False
    if not s.degraded_since:
        s.degraded_since = t.now
    if t.now - s.degraded_since < DELAY:
        return False
    s.degraded_since = t.now
    count, since = _tries(t)
    if count >= TRIES:
        if count == TRIES:
            t.log("rfs_recovery_over", tries=str(TRIES))
            t.because("degraded", "stays so", tries=count)
            t.remember({COUNT: str(count + 1)})
        return False
    t.remember({COUNT: str(count + 1), SINCE: str(since)})
    t.log("rfs_recovery", number=str(count + 1), tries=str(TRIES))
    t.because("degraded", "stopstart: the other server waits for the replication", tries=count + 1)
    commands.begin_stop(t, "stopstart", "stopstart")
    return True


def _tries(t: Turn) -> tuple[int, int]:
    """How many there were, and since when (Unix time) they count."""
    now = round(t.now + t.s.clock)
    count, since = t.s.resource(COUNT, "0"), t.s.resource(SINCE, "0")
    if not (count.isdigit() and since.isdigit()) or now - int(since) >= WITHIN:
        return 0, now
    return int(count), int(since)
