"""Parts of an adopted role that are not there: a heart that was restarted finds their processes dead (M0, M5).

Without its data the application cannot go on: an orderly stopstart, or the other server goes on when it has everything.
Everything else is started again beside the application. A stop in progress needs nothing: it starts what it has to ask.
"""

from __future__ import annotations

from heart.core import commands, leaving, plans
from heart.core.events import Proved
from heart.core.turn import Turn, step
from heart.core.values import Color, Role


def on_proved(t: Turn, event: Proved) -> None:
    """What nobody sets any more is init at once; then the parts are made again."""
    s = t.s
    s.unproved = False
    t.remember(dict.fromkeys((name for name in event.resources if name in s.resources), "init"))
    if not event.names or not s.role.running or s.leaving or s.stopping:
        return
    names = ", ".join(event.names)
    t.log("parts_lost", names=names)
    t.because("parts_lost", "the role is made whole", role=s.role.value, names=names, data=event.data)
    if not event.data:
        if t.idle():
            t.become(s.role, Color.MAGENTA)
            t.follow(*plans.repaired(s.role))
        else:
            # what it asks is started then
            s.plan = (*s.plan, *plans.standing_by())
        return
    # what a broken pair needs is recorded by the next primary; nothing can be acknowledged before
    s.boxless, s.breaking, s.break_asked = s.role.primary, "", ""
    t.become(s.role, Color.MAGENTA)
    t.follow(*plans.without_data())


@step
def leave_without_data(t: Turn, _: str) -> None:
    """The processes are there again, the directories are mounted; the application still has the dead mount open."""
    if t.s.role is Role.SECOND:
        leaving.leave(t, "start")
    else:
        commands.begin_stop(t, "stopstart", "stopstart")
