"""The mirror automaton: `decide(state, event, now)` -> new state, actions, reasons.

Pure: no clock, file, socket or sleep.  The same function drives the real
process, `safekit simulate` and the simulation tests.

Invariants (see also doubt, pairing, waiting, swap):

* M0  nobody decides to be alone before it has listened for a whole time-out
  (see alone).
* M1  a server that hears its peer becomes primary only by the peer's grant,
  by the peer's leaving, or by the release of a swap.
* M2  only up-to-date data becomes primary, unless prim or primforce says so.
* M3  the peer knows that it is out of date, and this server remembers to be
  alone, before a write that the peer lacks is acknowledged.
* M4  a late call refreshes the peer's time-out, and a very late one makes this
  server doubt its own data until it hears the peer (see doubt).
* M6  one effect at a time; heartbeats depend on none of them.
* M7  of two primaries the one that took over on silence leaves, unless the
  other has acknowledged nothing alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from heart.core import (
    alone,
    commands,
    doubt,
    fitting,
    hearing,
    lineage,
    machine,
    news,
    pairing,
    parts,
    running,
    solo,
    swap,
    syncat,
    waiting,
    witness,
)
from heart.core.actions import Action, Send
from heart.core.events import (
    Born,
    ClusterView,
    Configured,
    Done,
    Event,
    Heard,
    LinkOpened,
    Ordered,
    Overslept,
    PairAsked,
    Proved,
    Replication,
    ResourceSet,
    SupervisorDied,
    Tick,
)
from heart.core.state import State, beat
from heart.core.turn import MAX_STEPS, Turn
from heart.core.values import Reason, Role, Setup

TICK_PULSES = 1.5
"""Time is looked at after so many pulses without any event: a peer that is heard saves the wake-up."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Result of one event: carry out `actions` in order, keep `state`, record `reasons`."""

    state: State
    actions: tuple[Action, ...]
    reasons: tuple[Reason, ...]


def new_state(setup: Setup, incarnation: int) -> State:
    """State of a heart that has not been born yet.  `incarnation` must grow with every start."""
    return State(setup=setup, incarnation=incarnation, failover=setup.failover)


def decide(state: State, event: Event, now: float) -> Decision:
    """React to one event at `now` (seconds of a monotonic clock).  `state` is not modified."""
    t = Turn(state.copy(), now)
    said = _said(t.s)
    hearing.notice_sleep(t)
    _HANDLERS[type(event)](t, event)
    _react(t)
    for _ in range(MAX_STEPS):
        if running.urgent(t) or t.advance() or (t.idle() and _settle(t)) or _pair_moved(t):
            continue
        break
    else:
        raise AssertionError(f"decisions do not settle in {t.s.role} after {type(event).__name__}: {t.reasons[-4:]}")
    if _said(t.s) != said:
        t.actions.append(Send())
    return Decision(t.s, tuple(t.actions), tuple(t.reasons))


def _react(t: Turn) -> None:
    """Answers to the peer and to the clock that do not depend on the plan."""
    hearing.check_links(t)
    doubt.settle(t)
    alone.settle(t)
    witness.check(t)
    machine.settle_last_primary(t)
    waiting.react_to_claim(t)
    pairing.react_to_fence(t)
    pairing.check_pair(t)
    swap.check(t)
    swap.react(t)
    running.announce(t)
    fitting.settle(t)
    lineage.settle(t)
    syncat.settle(t)
    if t.s.role is Role.PRIM and t.s.peer is not None and pairing.pair_healthy(t):
        lineage.mark(t, t.s.peer)


def _pair_moved(t: Turn) -> bool:
    s = t.s
    before = (s.breaking, s.role, s.plan)
    pairing.check_pair(t)
    return (s.breaking, s.role, s.plan) != before


def _settle(t: Turn) -> bool:
    s = t.s
    if s.pending:
        command, s.pending = s.pending[0], s.pending[1:]
        commands.carry_out(t, command)
        return True
    if s.leaving or s.stopping:
        return False
    if s.role.running and fitting.gives_way(t):
        return True
    if s.role is Role.WAIT and s.listening and s.intent and (blocked := fitting.blocked(t)) is not None:
        return blocked
    if s.role is Role.WAIT:
        return waiting.settle(t) if s.setup.mirror else solo.settle(t)
    return s.role.running and running.settle(t)


def _said(s: State) -> tuple[Any, ...]:
    """What the heartbeats of a state say; a change is sent at once."""
    return (
        s.role, s.color, s.resources, s.eligible, s.serving, s.claim, s.grant, s.swap, s.swap_refused, s.fence,
        s.fenced, s.stream_lost_at > 0, s.action, s.intent,
    )  # fmt: skip


def deadline(s: State) -> float:
    """When `decide` must be called with a Tick at the latest, whatever else happens.  Never in the past: what is due
    already and was not done waits for something else than time."""
    times = [s.seen_at + TICK_PULSES * s.setup.pulse, s.listening_since + s.setup.timeout, s.verdict_deadline]
    times += [at + link.timeout for link, at in _open_links(s)]
    if s.role is Role.WAIT and s.listening:
        times += [s.listen_until, s.retry_at]
    if s.setup.witness and s.role.primary:
        times.append(s.confirmed_at + s.setup.timeout)
    if s.verdict == "up":
        times.append(s.verdict_from)
    if s.role is Role.WAIT and s.verdict == "down":
        times.append(s.verdict_retry)
    if s.candidate:
        times.append(s.candidate_since + s.setup.handle_time)
    if s.breaking == "fence":
        times.append(s.break_deadline)
    elif s.alone_due():
        times.append(s.break_retry)
    return min(at for at in times if at > s.seen_at)


def _open_links(s: State) -> list[tuple[Any, float]]:
    return [(link, s.heard_at[link.ident]) for link in s.setup.links if s.links.get(link.ident) in ("init", "up")]


def _nothing(t: Turn, event: Event) -> None:
    """Tick: time alone."""


def _ordered(t: Turn, event: Ordered) -> None:
    commands.order(t, event.command)


_HANDLERS: dict[type, Callable[[Turn, Any], None]] = {
    Born: news.on_born,
    Tick: _nothing,
    Heard: hearing.on_heard,
    LinkOpened: hearing.on_link_opened,
    Overslept: hearing.on_overslept,
    Ordered: _ordered,
    Done: news.on_done,
    ResourceSet: news.on_resource,
    Replication: news.on_replication,
    PairAsked: pairing.on_pair_asked,
    SupervisorDied: news.on_supervisor_died,
    Proved: parts.on_proved,
    ClusterView: news.on_cluster,
    Configured: hearing.on_configured,
}

__all__ = ["Decision", "beat", "deadline", "decide", "new_state"]
