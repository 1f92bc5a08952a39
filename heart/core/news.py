"""News from this server: birth of the heart, ends of effects, resources, replication, supervisor."""

from __future__ import annotations

import math

from heart.core import commands, former, hearing, leaving, lineage, pairing, plans, syncat, trouble, waiting, witness
from heart.core.actions import Processes
from heart.core.events import Born, ClusterView, Done, Replication, ResourceSet, SupervisorDied
from heart.core.turn import STEPS, Turn, step
from heart.core.values import Color, Role

CONFIRMED_PULSES = 3
"""A heart has so long to be heard by the peer, if nobody knows when the one before was."""
RETRY = 5.0
"""Seconds in WAIT before a synchronisation that failed is tried again."""

ELSEWHERE = "state.elsewhere"
"""Resource: the other server's state, and since when, as its safeadmin tells it: heartbeats may be cut where that is
still heard."""
UNLOGGED = ("rfs_bandwidth.", "rfs.inconsistent", "member.")
"""Figures that change by themselves, and what a message of its own tells: shown by `safekit state -v`."""
FARM = ("member.", "farm.")
"""Who takes part in a farm, and the shares of this server: decided by vipd, told by `safekit why`."""
FROZEN = ("state.", "heartbeat.", "usersetting.", "config.", "trouble.", "rfs.schedule")
"""Resources that nobody sets from outside."""
MEMORY = ("rfs.uptodate", "rfs.lastprimstate", "rfs.paired", "rfs.swapping")


def on_born(t: Turn, event: Born) -> None:
    """First event: what is remembered, and whether a running role is adopted (M5)."""
    s = t.s
    s.resources = dict(event.resources)
    s.clock = event.unix - t.now
    commands.recall_loop(t)
    defaults = {"state.term": "0", "state.former": "PRIM", "state.held": "down", s.lastprim_name: "down"}
    defaults |= {"state.rival": "none"} if s.setup.mirror else {}
    if s.setup.rfs:
        defaults |= dict.fromkeys(
            ("rfs.uptodate", "rfs.paired", "rfs.swapping", "rfs.degraded", "rfs.lastprimstate"), "down"
        )
        defaults |= {lineage.NAME: lineage.NONE} if s.setup.mirror else {}
    t.remember({name: value for name, value in defaults.items() if name not in s.resources})
    former.forget_former(t)
    t.forget((ELSEWHERE,))
    hearing.start_listening(t)
    role = _role(s.resources.get("state.local", "STOP"))
    if event.adopt and role is not Role.STOP:
        _adopt(t, role, event)
        return
    if event.halted:
        t.log("previous_halt")
        if s.paired:
            # the peer may have gone on with newer data
            t.memory(uptodate=False)
        t.because("previous_halt", "uptodate kept" if s.uptodate else "not up to date", paired=s.paired)
    t.memory(swapping=False, degraded=False)
    hearing.trust(t)
    lineage.look_where(t, event.place)
    s.role, s.color = Role.STOP, Color.RED
    t.remember({"state.local": Role.STOP.value, "state.color": Color.RED.value})


def _role(name: str) -> Role:
    return Role(name) if name in Role.__members__ else Role.STOP


def _adopt(t: Turn, role: Role, event: Born) -> None:
    """Only heart died.  A green role goes on untouched; one in transition is brought to a known point."""
    s = t.s
    color = s.resources.get("state.color", "magenta")
    command = s.resources.get("state.command", "start")
    t.log("adopted", state=role.value, color=color)
    t.because("adopted", f"{role} {color}", command=command)
    s.role = role
    s.color = Color.GREEN if color == "green" else Color.MAGENTA
    s.intent = "start" if role is Role.WAIT else ""
    s.failover = s.resources.get("usersetting.failover", "on") == "on"
    s.serving = role.primary
    s.unproved = event.unproved
    # the other server counts from what it heard of the heart before
    unknown = math.isinf(event.unconfirmed)
    s.confirmed_at = t.now - (s.setup.timeout - CONFIRMED_PULSES * s.setup.pulse if unknown else event.unconfirmed)
    s.hurried = s.color is Color.MAGENTA and witness.cut_off_before(t)
    t.memory(swapping=False)
    # a doubt of the former heart is ours
    hearing.doubt(t, float(s.resources.get(hearing.STOOD_STILL, "0")) + event.gap)
    if command in ("stop", "stopstart", "respawn"):
        commands.begin_stop(t, command, "stopstart" if command == "stopstart" else "stop")
    elif role is Role.WAIT:
        s.color = Color(color) if color in ("red", "magenta") else Color.MAGENTA
        t.become(Role.WAIT, Color.MAGENTA)
        t.follow(*plans.resume(adopted=True))
    elif s.color is Color.GREEN:
        if role is Role.ALONE and s.setup.rfs and not s.paired:
            # heart may have died between its memory and telling nfsadmin
            s.breaking = "alone"
    else:
        if s.hurried or (role.primary and s.setup.rfs and (s.doubted or not s.uptodate)):
            # the application was left to the secondary already, or may run there
            leaving.leave(t, "stopwait")
        elif role.primary or role is Role.UP:
            t.become(role, Color.MAGENTA)
            t.follow(*plans.adopted(role, paired=s.paired))
        else:
            leaving.leave(t, "start")


def on_done(t: Turn, event: Done) -> None:
    """An effect ended.  A Done of an effect that was killed or replaced carries an old token: ignored."""
    s = t.s
    if event.token and event.token == s.verdict_token:
        witness.answered(t, event.ok, event.text or event.code)
        return
    if event.token and event.token == s.break_token:
        pairing.alone_done(t, event.ok, event.text or event.code)
        return
    if not event.token or event.token != s.busy:
        return
    effect = s.busy_step
    s.busy, s.busy_step = 0, None
    trouble.scripts_ended(t, event.scripts)
    if isinstance(effect, Processes) and not effect.start:
        t.reset_checks(effect.phase)
    if getattr(effect, "operation", "") == "prepare" and event.ok:
        s.consistent = event.consistent
        if event.unapplied and s.uptodate:
            t.log("unapplied")
            t.because("unapplied_acknowledgements", "the data is not up to date")
            t.memory(uptodate=False, lastprim=False)
    if not event.ok:
        t.because("effect_failed", type(effect).__name__, code=event.code, text=event.text)
        if event.code == "unapplied":
            # it was about to take over: the primary that left knows more, and is not to follow this data
            t.memory(uptodate=False, lastprim=False)
        on_failure = getattr(effect, "on_failure", "")
        if on_failure:
            STEPS[on_failure](t, event.text or event.code)


@step
def prepare_failed(t: Turn, text: str) -> None:
    """The replicated directories cannot be used: nothing can start on this server."""
    t.log("rfs_unusable", operation="prepare", reason=text)
    t.because("prepare_failed", "-> STOP", text=text)
    trouble.note(t, trouble.STOP, text)
    commands.begin_stop(t, "stop", "stop")


@step
def primary_failed(t: Turn, text: str) -> None:
    """The directories cannot be written: the application must not start on them."""
    t.log("rfs_unusable", operation="primary", reason=text)
    t.because("primary_failed", "-> STOP", text=text)
    trouble.note(t, trouble.STOP, text)
    commands.begin_stop(t, "stop", "stop")


@step
def secondary_failed(t: Turn, text: str) -> None:
    """No synchronisation for now: back to WAIT, and again later."""
    s = t.s
    t.log("rfs_unusable", operation="secondary", reason=text)
    t.because("secondary_failed", "SECOND -> WAIT", text=text)
    trouble.note(t, trouble.SYNC, text)
    s.retry_at = t.now + RETRY
    leaving.leave(t, s.action)


def on_resource(t: Turn, event: ResourceSet) -> None:
    """A checker, nfsadmin or the command `set` gives a value; logged on change only."""
    s = t.s
    if event.name.startswith(FROZEN) or event.name in MEMORY:
        t.because("refused", f"set {event.name}", who=event.who)
        return
    if event.name == "rfs.degraded" and event.value == "up" and not s.role.primary:
        # late news of a primary that has handed over: the rules of the other server would hold it back
        t.because("refused", "set rfs.degraded", who=event.who, role=s.role.value)
        return
    if event.name == syncat.NAME and syncat.refused(t):
        t.because("refused", f"set {event.name}", who=event.who, role=s.role.value)
        return
    before = s.resources.get(event.name)
    changed = t.remember({event.name: event.value})
    if changed and not event.name.startswith(UNLOGGED):
        # init says only that nobody looks any more
        code = "resource_info" if event.value == "init" else "resource_set"
        t.log(code, name=event.name, value=event.value, who=event.who)
    if changed and event.name.startswith(FARM):
        t.because("farm", f"{event.name}={event.value}", before=before or "unknown")
    if event.name == "rfs.degraded" and event.value == "up" and s.role.primary:
        s.break_asked = s.break_asked or "degraded"


_TOLD = {
    "replication_lost": "the secondary does not answer to the replication any more",
    "secondary_lost": "the connection to the primary's replication has ended",
    "nfsbox_died": "nfsbox of this server died",
    "rfs_synced": "the reintegration has ended",
    "rfs_failed": "the reintegration failed",
}


def on_replication(t: Turn, event: Replication) -> None:
    """News from nfsadmin."""
    s = t.s
    reason = {"reason": event.reason} if event.reason else {}
    t.because(event.kind, _TOLD.get(event.kind, "news of the replication"), role=s.role.value, **reason)
    if event.kind == "replication_lost":
        if s.role.primary:
            s.break_asked = event.reason or event.kind
    elif event.kind == "secondary_lost":
        complete = not s.syncing or s.synced_in_doubt
        if s.role is Role.SECOND and complete and not s.stream_lost_at:
            s.stream_lost_at = t.now
    elif event.kind == "nfsbox_died":
        _nfsbox_died(t)
    elif event.kind == "rfs_synced":
        synced(t, event.attempt)
    elif event.kind == "rfs_failed" and s.role is Role.SECOND and s.syncing and not s.leaving:
        secondary_failed(t, event.reason or "the reintegration failed")


def synced(t: Turn, attempt: str) -> None:
    """The primary has remembered the pair: this server may call itself up to date."""
    s, peer = t.s, t.s.peer
    if s.role is not Role.SECOND or not s.syncing or s.leaving or s.stopping:
        return
    if attempt != s.attempt:
        t.because("stale", "news of an earlier synchronisation", attempt=attempt, now=s.attempt)
        return
    if s.doubted or (peer is not None and peer.role.primary and not peer.paired):
        # the primary says itself that this server is in the pair: it may have broken it again meanwhile
        s.synced_in_doubt = attempt
        return
    if peer is None or not peer.role.primary or s.stream_lost_at:
        # complete at some time, but the primary has left since: it knows more
        return
    if peer.fence and s.fenced != (peer.incarnation, peer.fence):
        return
    s.syncing, s.consistent = False, True
    t.forget((trouble.SYNC,))
    s.stream_lost_at = 0.0
    s.swap_back = waiting.wants_primary_back(t)
    waiting.follow_primary(t)
    t.memory(uptodate=True, paired=True, lineage=peer.lineage, vouched="down")
    t.because("synced", "up to date", peer=t.peer_role.value)
    t.follow(*plans.second_scripts(plans.action_word(s.action)))


def _nfsbox_died(t: Turn) -> None:
    s = t.s
    if s.leaving or s.stopping:
        return
    if s.role.primary:
        s.break_asked = "nfsbox died"
        if s.swap is not None:
            s.swap = None
            t.memory(swapping=False)
        s.action = "restart"
        t.become(s.role, Color.MAGENTA)
        t.follow(*plans.degraded(s.role))
    elif s.role is Role.SECOND:
        secondary_failed(t, "nfsbox died")


def on_supervisor_died(t: Turn, event: SupervisorDied) -> None:
    """Nobody restarts a dead process any more: an orderly stopstart under a new supervisord."""
    s = t.s
    t.log("supervisor_died")
    t.because("supervisor_died", "stopstart under a new one", role=s.role.value)
    if s.role is not Role.STOP and not s.stopping:
        commands.begin_stop(t, "respawn", "stopstart")


def on_cluster(t: Turn, event: ClusterView) -> None:
    """safeadmin's view, for cluster() in rules and for a server that listens."""
    s = t.s
    s.cluster, s.siblings = event.value, event.siblings
    stopped = any(sibling.node == s.setup.peer and not sibling.state for sibling in event.siblings)
    s.stopped_elsewhere_at = t.now if stopped else -math.inf
    if s.setup.mirror:
        told = next((sibling for sibling in event.siblings if sibling.node == s.setup.peer), None)
        seen = "unknown" if told is None else f"{told.state}@{told.since}" if told.state else "STOP@0"
        t.remember({ELSEWHERE: seen})
