"""Scheduled synchronisation (guide 13.6.4.10): a secondary that has everything waits in WAIT (red) until the next time.

rfs.syncat is what cron, or an administrator, sets to up; the rule syncat_wait waits while it is down:

init  the module starts, or this server is primary: the schedule says nothing to it
down  the secondary has synchronised
up    it is time
"""

from __future__ import annotations

from heart.core.turn import Turn
from heart.core.values import Color, Role
from safekit.spelling import as_word

NAME = "rfs.syncat"
SCHEDULE = "rfs.schedule"
"""Resource: the times, for whoever tells when the next one is (`safekit.spelling.from_word`)."""


def begins(t: Turn) -> None:
    """The module starts: it synchronises, whenever the last time was."""
    if t.s.setup.syncat:
        t.remember({NAME: "init", SCHEDULE: as_word(t.s.setup.syncat)})
    else:
        t.forget((NAME, SCHEDULE))


def settle(t: Turn) -> None:
    """What the role makes of it."""
    s = t.s
    if not s.setup.syncat:
        return
    if s.role.primary:
        t.remember({NAME: "init"})
    elif s.role is Role.SECOND and s.color is Color.GREEN and s.uptodate:
        t.remember({NAME: "down"})


def refused(t: Turn) -> bool:
    """Whether nobody may set it now: it is time only for a server that waits."""
    return not (t.s.setup.syncat and t.s.role is Role.WAIT)
