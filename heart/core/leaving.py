"""The way out of a running role, for whatever reason: a command, a rule, the peer."""

from __future__ import annotations

from heart.core import plans
from heart.core.turn import Turn
from heart.core.values import VERDICT, Color, Role

AT_LEAST = 0.1
"""Seconds that the stop scripts of a hurried stop have, however late it begins."""


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
    within = time_left(t)
    if s.stopping == "forcestop":
        t.follow(*plans.forced_stop(s.role, s.action, within=within))
    else:
        t.follow(*plans.leave_hurriedly(s.role, s.action, within))


def time_left(t: Turn) -> float:
    """Seconds in which the stop scripts of a server that is cut off have ended, so that it keeps what `Setup.holds`
    promises: all of `Setup.hurry` when it begins in time, less for a heart that goes on with it, or begins it anew."""
    s = t.s
    until = s.confirmed_at + s.setup.timeout + VERDICT + s.setup.hurry
    return max(min(s.setup.hurry, until - t.now), AT_LEAST)
