"""The failover machine: rules over resources, held for handle_time before they act (guide 13.18).

It looks at every change, not only every period.  handle_time applies to a
running module; WAIT is decided at once (start and wake-up).
"""

from __future__ import annotations

from heart.core import lineage
from heart.core.state import State
from heart.core.turn import Turn
from heart.core.values import Role
from safekit.rules.ast import Assign
from safekit.rules.evaluator import Verdict, View, evaluate

MAX_ROUNDS = 4
"""Evaluations in a row, when assignments keep changing what the rules see."""


def view(s: State, *, uptodate: bool = False) -> View:
    """What the rules see.  `uptodate` shows this server's data as up to date: the prim commands vouch for it."""
    local = {**s.resources, "rfs.uptodate": "up"} if uptodate and s.setup.rfs else s.resources
    remote = None
    if s.peer is not None and s.peer.role is not Role.STOP:
        remote = dict(s.peer.resources)
    return View(local, remote, s.setup.hostname or s.setup.node, s.setup.is_default_prim, s.cluster)


def verdict(t: Turn, *, uptodate: bool = False) -> Verdict:
    """Evaluate the rules, carrying out their assignments."""
    found = Verdict()
    for _ in range(MAX_ROUNDS):
        found = evaluate(t.s.setup.rules, view(t.s, uptodate=uptodate))
        if not any(_assign(t, hit.label, hit.outcome, hit.inputs) for hit in found.assignments):
            break
    return found


def _assign(t: Turn, label: str, outcome: object, inputs: tuple[tuple[str, str], ...]) -> bool:
    s = t.s
    if not isinstance(outcome, Assign) or s.resources.get(outcome.name) == outcome.value:
        return False
    if outcome.name.startswith(("state.", "usersetting.", "heartbeat.")):
        return False
    if outcome.name.startswith("rfs.") and (s.role is not Role.WAIT or not s.setup.rfs or not s.consistent):
        # the memory of the data may be settled between two waiting servers only (M2)
        return False
    t.because(label, f"{outcome.name}={outcome.value}", **dict(inputs))
    vouched = {lineage.VOUCHED: "up"} if (outcome.name, outcome.value) == ("rfs.uptodate", "up") else {}
    t.remember({outcome.name: outcome.value, **vouched})
    t.log("resource_info", name=outcome.name, value=outcome.value, who=f"rule_{label}")
    return True


def candidate(t: Turn) -> tuple[str, Verdict]:
    """On a running module: the action that has been asked for during handle_time, else ""."""
    s = t.s
    looked_at = (s.resources, s.peer.resources if s.peer is not None else None, t.peer_role is Role.STOP, s.cluster)
    if not s.candidate and looked_at == s.rules_seen:
        return "", Verdict()
    found = verdict(t)
    s.rules_seen = (s.resources, *looked_at[1:])
    verb = found.verb.value if found.verb is not None else ""
    if verb != s.candidate:
        _withdrawn(t)
        s.candidate, s.candidate_since, s.put_off, s.candidate_of = verb, t.now, (), None
        if verb and found.winner is not None:
            s.candidate_of = (found.winner.label, tuple(name for name, _ in found.winner.inputs))
            t.because(found.winner.label, f"{verb}() asked for", **dict(found.winner.inputs))
    if verb and t.now - s.candidate_since >= s.setup.handle_time:
        s.candidate, s.rules_seen = "", ()
        return verb, found
    return "", found


def _withdrawn(t: Turn) -> None:
    """What a rule asked for is not wanted any more, or something stronger is, before its time had come."""
    s = t.s
    if not s.candidate or s.candidate_of is None:
        return
    label, names = s.candidate_of
    remote = dict(s.peer.resources) if s.peer is not None else {}
    now = {n: remote.get(n[7:], "unknown") if n.startswith("remote.") else s.resource(n) for n in names}
    t.because(label, f"{s.candidate}() withdrawn", after=f"{t.now - s.candidate_since:.0f} s", **now)


def put_off(t: Turn, verb: str, found: Verdict, why: str) -> None:
    """An action that is not possible here and now (a swap without a secondary): told once, and asked for again after
    each handle_time."""
    s = t.s
    assert found.winner is not None
    s.candidate, s.candidate_since = verb, t.now
    told = (verb, found.winner.label, why)
    if told != s.put_off:
        s.put_off = told
        t.because("refused", f"{verb}()", why=why, by=found.winner.label, **dict(found.winner.inputs))
        t.log("action_put_off", action=verb, rule=found.winner.label, reason=why)


def settle_last_primary(t: Turn) -> None:
    """Two servers that wait and both remember to be the last primary: the older term gives the memory up.

    A peer that is primary at that moment may be about to leave after a split brain, and to forget it too.
    """
    s, peer = t.s, t.s.peer
    if peer is None or s.role is not Role.WAIT or peer.role not in (Role.WAIT, Role.STOP):
        return
    if s.lastprim and lineage.newer(s, peer) < 0:
        # it was, in a past that the other one has seen go on
        t.memory(lastprim=False)
    if s.lastprim and peer.lastprim and peer.term > s.term:
        t.memory(lastprim=False)
        t.because("older_term", "the peer was primary later", term=s.term, peer=peer.term)
