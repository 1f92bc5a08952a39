"""The pair: when a primary is on its own, and what must be durable before it acts so.

Order on the primary (M3): the peer acknowledges durably that it is out of date,
or is lost; then this server remembers that it is alone; then nfsadmin may
release the writes that the peer lacks.  So a crash at any point leaves at most
one server that calls itself up to date.

A primary whose pair is whole has acknowledged nothing that the other lacks.
"""

from __future__ import annotations

from heart.core import alone, lineage, plans
from heart.core.actions import Rfs, Run
from heart.core.alone import Evidence
from heart.core.events import PairAsked
from heart.core.state import State
from heart.core.turn import Turn, condition, step
from heart.core.values import Beat, Color, Role

ALONE_RETRY = 2.0
"""Seconds between two attempts to tell nfsadmin that the peer is gone."""


def pair_healthy(t: Turn) -> bool:
    """The peer is secondary and has all that this server acknowledged."""
    peer = t.s.peer
    if peer is None or peer.role is not Role.SECOND or t.s.breaking or t.s.break_asked or peer.stream_lost:
        return False
    return not t.s.setup.rfs or (t.s.paired and peer.uptodate == "up")


def left_whole(t: Turn) -> bool:
    """This primary leaves without its file system, and the secondary has all that was acknowledged, although their
    connection is gone."""
    s, peer = t.s, t.s.peer
    if not (s.boxless and s.setup.rfs and s.paired) or s.breaking or peer is None:
        return False
    return peer.role is Role.SECOND and peer.uptodate == "up"


def check_pair(t: Turn) -> None:
    """On a primary: begin to break the pair when the secondary left it, and go on with what was begun."""
    s = t.s
    if not s.role.primary or (s.leaving and s.setup.rfs and not s.uptodate):
        # the data was left to the secondary, or given up
        s.breaking, s.break_asked = "", ""
        return
    if s.unproved:
        # nothing is acknowledged without the file system, and whether it is there is about to be known
        return
    if s.doubted:
        # the peer may be the one that goes on; it is about to be heard, or given up with our data
        return
    if left_whole(t):
        s.break_asked = ""
        return
    cause = s.break_asked or _broken(t)
    if not s.setup.rfs:
        s.break_asked = ""
        if s.role is Role.PRIM and cause and not (t.s.peer is not None and t.s.peer.role.primary):
            _now_alone(t, cause)
        return
    if cause and s.paired and not s.breaking and not _contested(t):
        start_break(t, cause)
    s.break_asked = ""
    if s.breaking == "fence":
        _wait_for_fence(t)
    if not s.alone_due():
        return
    if s.boxless:
        # no write waits for that: the next primary records it
        s.breaking = ""
    elif t.now >= s.break_retry:
        _tell_nfsadmin(t)


def _broken(t: Turn) -> str:
    s, peer = t.s, t.s.peer
    if t.lost():
        return "no heartbeat"
    if peer is None:
        return ""
    if peer.role in (Role.STOP, Role.WAIT):
        return "the secondary left"
    if peer.role is Role.SECOND and peer.stream_lost:
        return "the secondary lost the replication stream"
    if s.setup.rfs and s.role is Role.PRIM and peer.role is Role.SECOND and peer.uptodate != "up":
        return "the secondary is out of date"
    return ""


def _contested(t: Turn) -> bool:
    """Both are primary: the recovery of a split brain decides, not this."""
    return t.s.peer is not None and t.s.peer.role.primary


def start_break(t: Turn, cause: str) -> None:
    """Ask the peer to acknowledge that it is out of date."""
    s = t.s
    s.fences += 1
    s.fence = s.fences
    s.breaking = "fence"
    s.break_deadline = t.now + s.setup.timeout
    t.because("pair_broken", "the peer is told that it is out of date", cause=cause, fence=s.fence)


def peer_is_fenced(t: Turn) -> bool:
    """The peer cannot call itself up to date any more, or nothing can be known of it."""
    s, peer = t.s, t.s.peer
    if t.lost() or (t.now >= s.break_deadline and not t.undecided()):
        return True
    if peer is None:
        return False
    if peer.fenced == (s.incarnation, s.fence):
        return True
    return peer.role in (Role.STOP, Role.WAIT) and peer.uptodate != "up"


def _wait_for_fence(t: Turn) -> None:
    s = t.s
    if _contested(t):
        # nothing was acknowledged alone: the one that took over keeps the newer data
        s.breaking = ""
        return
    if peer_is_fenced(t):
        s.breaking, s.break_token, s.break_retry = "alone", 0, 0.0
        _now_alone(t, "the peer is lost" if t.lost() else "the peer is out of date")


def _now_alone(t: Turn, cause: str) -> None:
    s = t.s
    was = s.role
    t.because("now_alone", f"{was} -> ALONE", cause=cause, peer=t.peer_role.value)
    alone.enter(t, s.color, Evidence.GOES_ON, paired=False, uptodate=True, former="PRIM")
    if was is Role.PRIM and not s.leaving and s.swap is None:
        word = t.s.peer.action if t.s.peer is not None else "start"
        s.plan = (*s.plan, *plans.pair_broken(plans.action_word(word)))


def _tell_nfsadmin(t: Turn) -> None:
    s = t.s
    s.break_token = t.new_token()
    t.actions.append(Run(s.break_token, Rfs("alone")))


def alone_done(t: Turn, ok: bool, text: str) -> None:
    """nfsadmin has recorded that the peer is out of date, or could not: then it is asked again."""
    s = t.s
    s.break_token = 0
    if ok or s.leaving or not s.role.primary:
        s.breaking = ""
        return
    s.break_retry = t.now + ALONE_RETRY
    t.log("internal", text=f"replication cannot go on without the peer yet, it is asked again: {text}")


def on_pair_asked(t: Turn, event: PairAsked) -> None:
    """The secondary has everything: remember it here before the secondary may call itself up to date."""
    s, peer = t.s, t.s.peer
    if not s.role.primary or s.leaving or s.stopping or s.breaking or s.break_asked or _about_to_part(s):
        t.reply(event.token, False, "not_primary", f"this server is {s.role} and cannot complete the pair now")
    elif peer is None or peer.role is not Role.SECOND:
        t.reply(event.token, False, "no_secondary", "no secondary is heard on the heartbeats")
    else:
        s.fence = 0
        t.memory(paired=True)
        t.because("pair_complete", "the secondary may call itself up to date", peer=peer.role.value)
        t.reply(event.token)


def _about_to_part(s: State) -> bool:
    """nfsadmin is about to be primary on its own, or is becoming it: a pair that is completed now would be broken by
    that, and the secondary would not know."""
    steps = (s.busy_step, *s.plan)
    return any(isinstance(step, Rfs) and step.operation in ("primary", "alone") for step in steps)


def react_to_fence(t: Turn) -> None:
    """The primary says that this server is out of date: remember it before saying so."""
    s, peer = t.s, t.s.peer
    if peer is None or not peer.fence or not peer.role.primary:
        return
    mark = (peer.incarnation, peer.fence)
    if s.fenced == mark or s.role.primary:
        return
    t.memory(uptodate=False, swapping=False)
    s.fenced = mark
    if s.role is Role.SECOND:
        # whatever was being synchronised belongs to a pair that does not exist any more
        s.syncing = False
    t.because("fenced", "this server is out of date", fence=peer.fence, peer=peer.role.value)


@step
def settle_pair(t: Turn, _: str) -> None:
    """A primary about to leave: if the peer is not surely complete, this server keeps the data."""
    s = t.s
    if not s.uptodate:
        # given up already: it outdates nobody else's
        return
    if s.setup.rfs and s.paired and not s.breaking and not (pair_healthy(t) or left_whole(t) or _contested(t)):
        start_break(t, "leaving while the secondary is not complete")


@condition
def pair_settled(t: Turn) -> bool:
    """No broken pair is being settled or about to be, and this server does not have to hear first who went on.

    Of a role that was adopted, and of a server in doubt, what breaks the pair is begun later (see `check_pair`).
    """
    s = t.s
    return not s.breaking and not (s.paired and (s.doubted or s.unproved or s.break_asked))


@condition
def peer_fenced(t: Turn) -> bool:
    """Nothing prevents the writes of a new primary."""
    return not t.s.fence or t.s.breaking != "" or peer_is_fenced(t)


@step
def leave_memory(t: Turn, _: str) -> None:
    """The application is stopped: with a complete secondary, that one has the data from now on.

    Before the stream is closed: its end must not look like a failure of the pair.
    """
    s = t.s
    if s.role.primary and s.paired and (pair_healthy(t) or left_whole(t)):
        t.memory(uptodate=False)
        t.because("left_to_secondary", "the secondary takes over", uptodate="down")
    s.serving = False


# -- split brain


def stays(t: Turn, peer: Beat) -> bool:
    """Of two primaries that hear each other, does this one stay?  The answer of the peer is the opposite.

    First the one that has acknowledged writes alone (the other loses nothing
    by leaving); then the one that goes on, if the other was already leaving its
    role when they met: it serves nobody, and who serves would be given up for it;
    then the former PRIM, if it has served since without a break (M7, see
    `heart.core.alone`); then the healthy one, the newer term, the name.
    """
    s = t.s
    by_itself, peer_alone = (not s.paired, not peer.paired) if s.setup.rfs else (True, True)
    newer = lineage.newer(s, peer)
    mine = (
        by_itself,
        newer > 0,
        not s.leaving,
        s.former != "SECOND",
        s.resource("rfs.degraded") != "up",
        s.term,
        s.setup.node,
    )
    theirs = (
        peer_alone,
        newer < 0,
        not peer.leaving,
        peer.former != "SECOND",
        not peer.degraded,
        peer.term,
        s.setup.peer,
    )
    return mine > theirs


def takes_first(s: State, peer: Beat) -> bool:
    """Of two servers that could both become primary, is it this one?  Antisymmetric as `stays`.

    Where one of them went on alone beside the other, the one that served last by its term comes before every wish.
    """
    last = s.setup.defaultprim == "lastprim"
    apart = s.setup.rfs and "none" not in (alone.rival(s), peer.rival)
    newer = lineage.newer(s, peer)
    mine = (
        s.intent in ("prim", "primforce"),
        newer > 0,
        s.former != "SECOND",
        s.term if apart else 0,
        s.setup.is_default_prim,
        last and s.lastprim,
        s.lastprim,
        s.term,
        s.setup.node,
    )
    theirs = (
        peer.forced,
        newer < 0,
        peer.former != "SECOND",
        peer.term if apart else 0,
        peer.default_prim,
        last and peer.lastprim,
        peer.lastprim,
        peer.term,
        s.setup.peer,
    )
    return mine > theirs


def can_be_prim(t: Turn) -> bool:
    """ALONE, and the other is a complete secondary."""
    s, peer = t.s, t.s.peer
    return s.role is Role.ALONE and peer is not None and peer.color is Color.GREEN and pair_healthy(t)
