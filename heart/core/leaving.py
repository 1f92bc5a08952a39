"""The way out of a running role, for whatever reason: a command, a rule, the peer."""

from __future__ import annotations

from heart.core import plans
from heart.core.turn import Turn
from heart.core.values import Color, Role


def leave(t: Turn, word: str) -> None:
    """Begin to leave the current role for WAIT; a secondary is out of date before it leaves."""
    s = t.s
    s.leaving = True
    s.syncing = s.serving = False
    s.action = plans.action_word(word)
    if s.role is Role.SECOND:
        t.memory(uptodate=False)
    if s.swap is not None:
        s.swap = None
        t.memory(swapping=False)
    t.become(s.role, Color.MAGENTA)
    if s.hurried:
        hurry(t)
        return
    t.follow(*plans.leave(s.role, s.action, revoke=s.sacrificed and s.paired))


def hurry(t: Turn) -> None:
    """The witness says that this primary is cut off: its application has ended before the other server starts it,
    however it was being stopped so far."""
    s = t.s
    s.leaving = True
    s.syncing = s.serving = False
    s.breaking, s.break_asked = "", ""
    within = s.setup.hurry
    if s.stopping == "forcestop":
        t.follow(*plans.forced_stop(s.role, s.action, within=within))
    else:
        t.follow(*plans.leave_hurriedly(s.role, s.action, within))
