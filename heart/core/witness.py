"""A split brain with a witness: upon the loss of all heartbeats only one server goes on (guide 13.17).

While the verdict is not there, the loss has not happened: `Turn.lost` says no, the primary releases no write
that its secondary may lack, and the secondary does not take over.  The verdict is asked for then, not before:
what the witness answered a moment ago says nothing of the network of now.

Up: go on as without a witness.  Down: splitbrain.uptodate goes down, the data of this server counts for nothing
any more, and the rule that looks at it (splitbrain_failure) acts at once; handle_time would be time with two
primaries.  The server waits until a heartbeat is back, or until it is stopped and started with prim.

The loser has stopped before the winner starts, by time alone.  A primary counts from the moment at which it sent
the newest heartbeat that the other one has confirmed (`Beat.echo`): one time-out later it asks, whatever it still
hears; `VERDICT` later at the latest it knows, and stops its application within `Setup.hurry`, then takes its
addresses away within `ADDRESSES`.  The sum is `Setup.holds`; its heartbeats tell it.  The other one has not heard
the primary later than that, and waits for `holds` from the last heartbeat that it has heard.  Who waits for a
witness that comes back waits for a renewal of the other one's verdict besides.
"""

from __future__ import annotations

from heart.core import commands, leaving, machine
from heart.core.actions import Abort, Run, Witness
from heart.core.turn import Turn
from heart.core.values import VERDICT, Command, Role

NAME = "splitbrain.uptodate"
WHO = "splitbraincheck"
HEARD_PULSES = 1.25
"""A verdict counts after so many pulses of silence: the witness may have answered because the networks were
repaired that very moment, and then the peer is heard first."""
RETRY = 10.0
"""Seconds between two questions: in WAIT to a witness that did not answer, and of a primary without replication, whose
verdict is renewed for as long as it hears nothing."""


def check(t: Turn) -> None:
    """Ask when the peer falls silent; forget the answer when it is heard again."""
    s = t.s
    if not s.setup.witness or s.role is Role.STOP:
        return
    if not t.quiet() and not t.cut_off():
        _forget(t)
        if s.resources.get(NAME) == "down":
            set_uptodate(t, True)
        return
    if s.verdict_token and t.now >= s.verdict_deadline:
        token, s.verdict_token = s.verdict_token, 0
        t.actions.append(Abort(token))
        answered(t, False, f"no answer within {VERDICT} s")
    if not (t.silent() or t.cut_off()) or not t.contested() or s.verdict_token:
        return
    if s.role is Role.WAIT and s.verdict == "down" and t.now >= s.verdict_retry:
        s.verdict = ""
    busy = s.hurried or (s.role is Role.WAIT and not s.listening) or (s.role is Role.SECOND and s.leaving)
    renew = s.verdict == "up" and s.role.primary and t.now >= s.verdict_retry
    if (not s.verdict or renew) and not busy:
        s.verdict_token = t.new_token()
        s.verdict_deadline = t.now + VERDICT
        t.actions.append(Run(s.verdict_token, Witness(s.setup.witness)))
        t.because("witness", "asked for its verdict", role=s.role.value, peer=s.remote[0].value)


def _forget(t: Turn) -> None:
    s = t.s
    if s.verdict_token:
        t.actions.append(Abort(s.verdict_token))
    s.verdict, s.verdict_token = "", 0


def answered(t: Turn, up: bool, text: str) -> None:
    """The verdict.  No answer counts as down: this server may be the one that is cut off."""
    s = t.s
    s.verdict_token = 0
    if not t.quiet() and not t.cut_off():
        return
    known = s.verdict == "up" and up
    s.verdict = "up" if up else "down"
    s.verdict_retry = t.now + RETRY
    if known:
        return
    s.verdict_from = t.now + HEARD_PULSES * s.setup.pulse
    if up and not s.role.primary:
        _wait_for_the_loser(t)
    t.because("witness", "goes on" if up else "is cut off", witness=s.verdict, role=s.role.value, text=text)
    if not up and s.role.running and not s.hurried:
        _isolated(t)


def _wait_for_the_loser(t: Turn) -> None:
    """The primary that this server does not hear any more, if it lives, has stopped by then."""
    s = t.s
    until = s.yield_until
    if s.role is Role.WAIT and not s.setup.rfs:
        until = max(until, t.now + RETRY + s.setup.holds - s.setup.timeout)
    if until <= s.verdict_from:
        return
    s.verdict_from = until
    t.log("witness_wait", seconds=f"{until - t.now:.0f}")
    t.because("witness_wait", "until the other server has surely stopped", seconds=f"{until - t.now:.1f}")


def _isolated(t: Turn) -> None:
    s = t.s
    set_uptodate(t, False)
    found = machine.verdict(t)
    if found.verb is None or found.winner is None:
        # the module's own rules leave the witness without a consequence (extends="no")
        t.because("witness", "no rule acts on its loss", role=s.role.value)
        s.verdict = "up"
        return
    # it stays the last primary that it knows of: should the other one fail before it takes over, rule
    # lastprim_server gives the data back to this server
    t.memory(uptodate=False)
    label = found.winner.label
    t.because(label, f"{found.verb.value}() at once", **dict(found.winner.inputs))
    hurried = s.role.primary
    if hurried:
        s.hurried = True
        t.drop_effect()
    if hurried and (s.leaving or s.stopping):
        leaving.hurry(t)
        return
    action = {"wait": "stopwait"}.get(found.verb.value, found.verb.value)
    commands.order(t, Command(action, who=label, automatic=True, rule=label))
    s.hurried = s.leaving and hurried


def cut_off_before(t: Turn) -> bool:
    """Whether the heart before this one was told by the witness that this primary is cut off, and a rule acts on it."""
    s = t.s
    told = bool(s.setup.witness) and s.role.primary and s.resources.get(NAME) == "down"
    return told and machine.verdict(t).verb is not None


def set_uptodate(t: Turn, up: bool) -> None:
    """splitbrain.uptodate, in the name of the checker that it belongs to."""
    value = "up" if up else "down"
    if t.remember({NAME: value}):
        t.log("resource_set", name=NAME, value=value, who=WHO)
