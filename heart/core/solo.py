"""WAIT and UP of farm and light modules: servers that do not depend on each other (guide 6.2, 13.2.3)."""

from __future__ import annotations

from heart.core import machine, plans, waiting
from heart.core.turn import Turn
from heart.core.values import Color, Role


def settle(t: Turn) -> bool:
    """Decide in WAIT: nothing but the checkers and the rules of this server counts.  True when a plan or a
    new state came out of it."""
    s = t.s
    if not s.listening or not s.intent:
        return False
    if waiting.unchecked(t):
        return waiting.unblocked_color(t)
    found = machine.verdict(t)
    if found.verb is not None and found.verb.value == "wait" and found.winner is not None:
        return waiting.block(t, found.winner.label, found.winner.inputs)
    waiting.wake(t)
    t.because("become_up", "WAIT -> UP", mode=s.setup.mode)
    waiting.enter(t)
    t.become(Role.UP, Color.MAGENTA)
    t.follow(*plans.to_up(plans.action_word(s.action)))
    return True
