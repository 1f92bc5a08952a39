"""SECOND, ALONE and PRIM: losing the peer, completing the pair, split brain, the machine's actions."""

from __future__ import annotations

from heart.core import alone, commands, degraded, leaving, machine, pairing, plans, swap, waiting
from heart.core.actions import Announce, Hold
from heart.core.alone import Evidence
from heart.core.turn import Turn, step
from heart.core.values import Color, Command, Role

MEETING_PULSES = 3
"""After a split brain, pulses that the leaving server waits until the other has heard it."""


def urgent(t: Turn) -> bool:
    """What may not wait for the end of the plan: only a plan that stands still or comes to a start script is cut.

    True when a new plan was made.
    """
    s = t.s
    if s.leaving or s.stopping or not s.role.running:
        return False
    step = s.busy_step if s.busy else s.plan[0] if s.plan else None
    if not (t.interruptible(step) or (isinstance(step, Hold) and not s.busy)):
        return False
    return _second_without_primary(t) if s.role is Role.SECOND else _split_brain(t)


def settle(t: Turn) -> bool:
    """A running role with nothing to do: see what has changed.  True when something was begun."""
    s = t.s
    if s.role is Role.SECOND:
        if _second_without_primary(t) or _fall_back(t):
            return True
        if s.color is Color.GREEN and not s.syncing and _default_primary(t):
            return True
    elif s.role.primary:
        if _split_brain(t):
            return True
        if pairing.can_be_prim(t):
            return _complete(t)
        if degraded.recover(t):
            return True
    return _machine(t)


# -- SECOND


def _second_without_primary(t: Turn) -> bool:
    s, peer = t.s, t.s.peer
    if t.lost():
        return _primary_gone(t, "no heartbeat")
    if peer is None:
        return False
    if peer.role in (Role.STOP, Role.WAIT):
        return _primary_gone(t, "remote stop")
    if peer.role.primary and s.setup.rfs and not s.uptodate:
        if not s.syncing:
            # fenced, whoever is heart of the primary meanwhile
            return _leave(t, "fenced", "the primary went on alone")
        return False
    if peer.role is Role.SECOND:
        if swap.take_back(t):
            return _take_over(t, "remote stop")
        both = s.swap is None and peer.swap is None and s.uptodate and peer.uptodate in ("up", "unknown")
        if both and not pairing.takes_first(s, peer):
            return _leave(t, "two_secondaries", "the other one is to be primary")
    return False


def _primary_gone(t: Turn, why: str) -> bool:
    s = t.s
    if s.doubted:
        return False
    if not s.uptodate or (s.syncing and s.setup.rfs):
        return _leave(t, "secondary_not_complete", f"the primary is gone: {why}")
    if not s.failover:
        return _failover_off(t, why)
    return _take_over(t, why)


def _take_over(t: Turn, why: str) -> bool:
    """SECOND -> ALONE: remember first, so that no crash leaves the data of both called up to date."""
    s, peer = t.s, t.s.peer
    t.log("failover_no_heartbeat" if why == "no heartbeat" else "failover_remote_stop")
    t.because("take_over", "SECOND -> ALONE", why=why, uptodate=s.uptodate, peer=t.peer_role.value)
    word = peer.action if peer is not None else s.action
    # the peer may still be an up-to-date secondary (a swap that failed half-way): it has to know first, and
    # one that is silent now has to know as soon as it is heard again
    if s.setup.rfs:
        s.fences += 1
        s.fence = s.fences
    s.break_deadline = t.now + s.setup.timeout
    s.swap = None
    s.stream_lost_at = 0.0
    s.action = plans.action_word(word)
    alone.enter(
        t,
        Color.MAGENTA,
        Evidence.SILENCE if why == "no heartbeat" else Evidence.LEFT,
        uptodate=True,
        paired=False,
        lastprim=True,
        swapping=False,
        former="SECOND" if why == "no heartbeat" else "PRIM",
        term=max(s.term, peer.term if peer is not None else 0) + 1,
    )
    steps = plans.to_alone(Role.SECOND, s.action, stops=("stop_sec", "stop_second"), starts=("start_prim",))
    t.follow(*steps)
    return True


def _leave(t: Turn, rule: str, why: str) -> bool:
    """SECOND -> WAIT, then decide again."""
    s = t.s
    t.because(rule, "SECOND -> WAIT", why=why, peer=t.peer_role.value)
    leaving.leave(t, s.action)
    return True


def _failover_off(t: Turn, why: str) -> bool:
    t.log("failover_off")
    t.log("action_called", action="stopstart", who="failover-off")
    t.log("transition_from", name="STOPSTART", who="failover-off")
    t.because("failover_off", "SECOND -> STOP -> WAIT", why=why)
    if t.s.setup.rfs:
        t.memory(uptodate=False)
    else:
        t.memory(held=True)
    commands.begin_stop(t, "stopstart", "stopstart")
    return True


def _fall_back(t: Turn) -> bool:
    """The stream is broken but the primary goes on without telling: resynchronise."""
    s = t.s
    if s.stream_lost_at and t.now - s.stream_lost_at >= s.setup.timeout and t.s.peer is not None and not t.quiet():
        return _leave(t, "stream_lost", "the replication stream broke and the primary did not react")
    return False


def _default_primary(t: Turn) -> bool:
    """defaultprim: right after its reintegration this server takes the application back (guide 5.8)."""
    s, peer = t.s, t.s.peer
    if not s.swap_back or peer is None or not peer.role.primary:
        return False
    s.swap_back = False
    t.log("transition_from", name="SWAP", who="defaultprim")
    swap.begin(t, nosync=False)
    return True


# -- ALONE and PRIM


def announce(t: Turn) -> None:
    """Whoever was primary unheard, or beside us, has told the network that the addresses are there. The one that keeps
    them tells that they are here when the two meet, since the other's stop scripts may take long, and when it has let
    them go."""
    s, peer, before = t.s, t.s.peer, t.s.rival
    if not s.role.primary:
        s.rival = ""
        return
    if peer is not None and peer.role.primary and s.swap is None:
        s.rival = "beside"
    else:
        s.rival = "unheard" if t.lost() else "" if peer is not None else before
    if s.rival == before or s.rival == "unheard":
        return
    if s.rival == "" or (peer is not None and pairing.stays(t, peer)):
        t.actions.append(Announce())
        t.because("announce", "the virtual addresses are told again", peer=t.peer_role.value)


def _split_brain(t: Turn) -> bool:
    s, peer = t.s, t.s.peer
    if peer is None or not peer.role.primary:
        s.split, s.split_since = False, 0.0
        return False
    if pairing.stays(t, peer):
        if not s.split:
            s.split = True
            t.log("splitbrain_staying")
            t.because("split_brain", "stays", former=s.former, paired=s.paired, peer_former=peer.former)
            t.memory(term=max(s.term, peer.term) + 1, former="PRIM")
            if s.role is Role.PRIM and s.setup.rfs:
                pairing.start_break(t, "split brain")
            elif s.role is Role.PRIM:
                s.break_asked = "split brain"
        return False
    s.split_since = s.split_since or t.now
    if peer.sees is not s.role and t.now - s.split_since < MEETING_PULSES * s.setup.pulse:
        # let the other see this server as it was: both logs are to tell the same story
        return False
    t.log("splitbrain_exiting")
    t.because(
        "split_brain", "leaves: its changes since the split are given up", former=s.former, paired=s.paired,
        peer_former=peer.former, peer_paired=peer.paired,
    )  # fmt: skip
    t.memory(uptodate=False, lastprim=False)
    # data that is given up outdates nobody else's
    s.sacrificed, s.fence = True, 0
    commands.begin_stop(t, "stopstart", "stopstart")
    return True


def _complete(t: Turn) -> bool:
    """ALONE -> PRIM."""
    s, peer = t.s, t.s.peer
    assert peer is not None
    word = plans.action_word(peer.action)
    t.because("pair", "ALONE -> PRIM", peer_uptodate=peer.uptodate, paired=s.paired)
    t.become(Role.PRIM, s.color, former="PRIM")
    t.follow(*plans.pair_complete(word))
    return True


# -- the machine


def _machine(t: Turn) -> bool:
    verb, found = machine.candidate(t)
    if not verb or found.winner is None:
        return False
    label = found.winner.label
    action = {"wait": "stopwait"}.get(verb, verb)
    why = " and ".join(f"{name} is {value}" for name, value in found.winner.inputs)
    command = Command(action, who=label, automatic=True, rule=label, why=why)
    refusal = commands.refusal(t, command)
    if refusal:
        machine.put_off(t, verb, found, refusal)
        return False
    t.because(label, f"{verb}()", **dict(found.winner.inputs))
    commands.order(t, command)
    return True


@step
def synchronize(t: Turn, _: str) -> None:
    """The reintegration runs; its end is an event."""
    waiting.follow_primary(t)
