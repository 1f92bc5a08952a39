"""WAIT: which server becomes what.

A server that hears its peer becomes primary only with the peer's grant (M1):
it publishes a claim, the other answers with a grant of that claim and keeps
its promise for as long as it hears the claim or a primary.  A server that
hears nothing decides alone after it has listened.

It listens for a whole time-out from the start of its heart, from each wake-up
and from each oversleep on (M0), five pulses if the other one's safeadmin says
that the module does not run there.

Who left the application to a server that may serve since then is in doubt:
it goes on alone only after it has heard that server, or by prim (see
`heart.core.alone`).
"""

from __future__ import annotations

from heart.core import alone, hearing, lineage, machine, pairing, plans
from heart.core.actions import Do, Rfs
from heart.core.alone import Evidence
from heart.core.state import State
from heart.core.turn import Turn, step
from heart.core.values import Beat, Color, Role

WAITS_FOR = "state.waitsfor"
"""Resource: what keeps this server in WAIT, for `safekit state`. The rule alone knows it: of several resources that are
down, most may have nothing to do with it."""
LONGEST_VALUE = 256
ACCEPTED = "config.accepted"
"""Resource: an administrator's `second` has accepted that the other server has other virtual addresses."""
SET_BACK = "set_back"
DOUBT = "waits until it has heard the other server"


@step
def listen(t: Turn, _: str) -> None:
    """Ready to decide: from now on the peer is listened to."""
    s = t.s
    s.listening = True
    if not s.consistent:
        t.memory(uptodate=False)
    s.listen_until = max(t.now, s.listening_since + s.setup.timeout)


@step
def arrive_in_wait(t: Turn, _: str) -> None:
    """The role was left: WAIT, then go on stopping, or decide again."""
    s = t.s
    if s.blocked and not s.stopping:
        alone.left(t)
    t.become(Role.WAIT, Color.RED if s.blocked and not s.stopping else Color.MAGENTA)
    s.leaving = s.hurried = False
    s.swap = None
    t.memory(swapping=False)
    s.serving = s.syncing = False
    s.stream_lost_at = 0.0
    s.split = s.sacrificed = s.swap_back = s.boxless = False
    if s.stopping:
        t.follow(*plans.stop_from_wait(s.action))
        return
    s.action = "start"
    s.intent = "start"
    listen(t, "")


@step
def leave_now(t: Turn, _: str) -> None:
    """Forced stop: same memory as an orderly one, without its waits."""
    s = t.s
    if s.role.primary:
        pairing.leave_memory(t, "")
        if s.paired:
            # nobody waited until the secondary knew that it is out of date: as after a power failure, it may go on
            t.memory(uptodate=False)
    elif s.role is Role.SECOND:
        t.memory(uptodate=False, swapping=False)
    if s.role.running:
        arrive_in_wait_forced(t)


def arrive_in_wait_forced(t: Turn) -> None:
    """WAIT in passing, without a new plan."""
    s = t.s
    s.leaving, s.swap, s.serving, s.syncing, s.stream_lost_at = False, None, False, False, 0.0
    s.hurried = False
    s.breaking, s.split, s.sacrificed, s.swap_back, s.boxless = "", False, False, False, False
    t.memory(swapping=False)
    t.become(Role.WAIT, Color.MAGENTA)


def react_to_claim(t: Turn) -> None:
    """Answer the peer's claim.  Only a server that waits or is stopped can promise not to be primary."""
    s, peer = t.s, t.s.peer
    if s.grant != (0, 0):
        kept = peer is not None and s.grant[0] == peer.incarnation
        if not kept or peer is None or not (peer.claim == s.grant[1] or peer.role.primary):
            s.grant = (0, 0)
    if peer is None or not peer.claim or peer.role is not Role.WAIT or s.role not in (Role.WAIT, Role.STOP):
        return
    if s.grant == (peer.incarnation, peer.claim):
        return
    if s.eligible and pairing.takes_first(s, peer):
        return
    s.grant = (peer.incarnation, peer.claim)
    s.claim = 0
    t.because("grant", "the peer may become primary", claim=peer.claim, eligible=s.eligible)


def settle(t: Turn) -> bool:
    """Decide in WAIT; True when a plan or a new state came out of it."""
    s = t.s
    s.eligible = False
    if not s.listening or not s.intent or t.now < s.retry_at:
        return False
    if not t.heard() and not t.lost():
        if not t.stopped_elsewhere():
            return False
        hearing.give_up_waiting(t)
        if not t.lost():
            return False
    if _refused(t):
        return True
    if unchecked(t):
        s.claim = 0
        return unblocked_color(t)
    return _decide(t)


def unchecked(t: Turn) -> bool:
    """A checker of phase pre has not spoken yet.  While they are switched off nobody waits for them."""
    resources = t.s.resources
    return t.checkers_on() and any(resources.get(name) == "init" for name in t.s.setup.checks_of("pre"))


def _refused(t: Turn) -> bool:
    """prim and second that cannot be: the module goes back to STOP."""
    s = t.s
    primary = t.peer_role.primary
    if s.intent in ("prim", "primforce"):
        if primary:
            t.log("prim_aborted")
            return _abort(t, "prim_refused", "the other server is primary")
        if s.intent == "prim" and not (s.consistent and s.resource("rfs.inconsistent") != "up"):
            t.log("inconsistent")
            t.log("advice_primforce")
            t.log("prim_aborted")
            return _abort(t, "prim_refused", "the data is inconsistent")
    elif s.intent in ("second", "fullsync") and not primary:
        t.log("second_aborted")
        return _abort(t, "second_refused", "the other server is not primary")
    return False


def _abort(t: Turn, rule: str, why: str) -> bool:
    t.because(rule, "WAIT -> STOP", why=why, peer=t.peer_role.value)
    stop(t, "stop", "stop")
    return True


def stop(t: Turn, kind: str, word: str) -> None:
    """Begin the stop from WAIT."""
    s = t.s
    s.stopping, s.action, s.claim, s.eligible, s.blocked = kind, word, 0, False, ""
    s.listening, s.intent = False, ""
    if s.color is not Color.MAGENTA:
        t.become(Role.WAIT, Color.MAGENTA)
    t.follow(*plans.stop_from_wait(word))


def _decide(t: Turn) -> bool:
    s, peer = t.s, t.s.peer
    forced = s.intent in ("prim", "primforce")
    verdict = machine.verdict(t, uptodate=forced)
    if verdict.verb is not None and verdict.verb.value == "wait" and verdict.winner is not None:
        s.claim = 0
        return block(t, verdict.winner.label, verdict.winner.inputs)
    if not forced and _set_back(t):
        s.claim = 0
        return block(t, SET_BACK, ((lineage.FOUND, s.resources[lineage.FOUND]),))
    if peer is not None and peer.role.primary:
        s.claim = 0
        if wake(t):
            return True
        if s.setup.rfs and s.uptodate and not s.paired and (peer.paired or peer.sees is not Role.WAIT):
            # This server has gone on alone: the peer is about to learn that, and may leave for it (see
            # running._split_brain); both must not give up their data.
            return False
        # a primary that leaves, or that was sacrificed after a split brain, has nothing to give
        if peer.serving and (not s.setup.rfs or peer.uptodate == "up"):
            return become_second(t)
        return unblocked_color(t)
    if s.held and not forced:
        return block_silently(t, "failover-off")
    if not (s.uptodate or forced):
        s.claim = 0
        return block_silently(t, "waiting for the other server") if peer is not None else False
    if alone.in_doubt(s) and not forced and (peer is None or peer.role is Role.STOP or _served_last(t, peer)):
        s.claim = 0
        return _doubtful(t)
    if wake(t):
        return True
    s.eligible = s.grant == (0, 0)
    if not s.eligible:
        return unblocked_color(t)
    if peer is not None and peer.role is Role.STOP and _served_last(t, peer) and not forced:
        t.memory(rival="served")
        return _doubtful(t)
    if peer is None or peer.role is Role.STOP:
        return become_alone(t, Evidence.SILENCE if peer is None else Evidence.LEFT)
    if peer.role is not Role.WAIT:
        s.claim = 0
        return unblocked_color(t)
    if peer.eligible and not pairing.takes_first(s, peer):
        s.claim = 0
        return unblocked_color(t)
    if not s.claim:
        s.claims += 1
        s.claim = s.claims
        t.because("claim", "asks the peer for its grant", claim=s.claim, uptodate=s.uptodate)
    if peer.grant == (s.incarnation, s.claim):
        return become_alone(t, Evidence.GRANT)
    return unblocked_color(t)


def _set_back(t: Turn) -> bool:
    """Data that was set back, or a copy, replaces nothing and starts nothing before an administrator's word."""
    s, peer = t.s, t.s.peer
    found = s.resources.get(lineage.FOUND, lineage.NONE)
    if peer is None or found == lineage.NONE:
        return False
    if peer.role.primary:
        return found in ("there", "both") and not accepts(s)
    return lineage.here(s)


def waited_for(inputs: tuple[tuple[str, str], ...]) -> str:
    """The resources that keep a server in WAIT, as one word: `tcp.web=down`, several with a comma between."""
    found = ""
    for name, value in inputs:
        more = f"{found},{name}={value}" if found else f"{name}={value}"
        if len(more) > LONGEST_VALUE:
            break
        found = more
    return found or "none"


def _served_last(t: Turn, peer: Beat) -> bool:
    """The other server, which waits or has stopped, has served without a break or later than this one."""
    newer = peer.uptodate == "up" and not peer.paired and not pairing.takes_first(t.s, peer)
    return t.s.setup.rfs and newer


def _doubtful(t: Turn) -> bool:
    """This server left the application while the other one could serve, and has not heard since what became of it."""
    s = t.s
    if s.blocked == DOUBT:
        return False
    s.blocked = DOUBT
    t.log("served_elsewhere")
    t.log("advice_served")
    t.remember({WAITS_FOR: waited_for(((alone.RIVAL, alone.rival(s)),))})
    t.because("served_elsewhere", DOUBT, peer=t.peer_role.value, rival=alone.rival(s))
    t.become(Role.WAIT, Color.RED)
    return True


def block(t: Turn, label: str, inputs: tuple[tuple[str, str], ...]) -> bool:
    s = t.s
    if s.blocked != label:
        if label == "notuptodate_server":
            t.log("not_uptodate")
        t.log("action_rule", action="wait", rule=label)
        if label == "notuptodate_server":
            t.log("advice_prim")
        t.log("transition_rule", name="WAIT_TR", rule=label)
        t.because(label, "blocked in WAIT", **dict(inputs))
        s.blocked = label
    t.remember({WAITS_FOR: waited_for(inputs)})
    if s.color is not Color.RED:
        t.become(Role.WAIT, Color.RED)
        return True
    return False


def block_silently(t: Turn, why: str) -> bool:
    """Red without a rule: after the grace of a period, so that a normal start stays magenta."""
    s = t.s
    if s.color is Color.RED:
        return s.blocked not in ("", why) and wake(t)
    if why == "failover-off" or t.now >= s.listen_until + s.setup.period:
        s.blocked = why
        t.because("blocked", "blocked in WAIT", why=why, peer=t.peer_role.value)
        t.become(Role.WAIT, Color.RED)
        return True
    return False


def wake(t: Turn) -> bool:
    """No wait applies any more: listen, before anything is decided.  True when it was one."""
    s = t.s
    if not s.blocked:
        return False
    rule = s.blocked
    s.blocked = ""
    t.remember({WAITS_FOR: "none"})
    hearing.listen_again(t)
    # the grace before WAIT turns red without a rule begins again
    s.listen_until = t.now
    if rule not in ("failover-off", "waiting for the other server", DOUBT):
        t.log("transition_rule", name="WAKEUP", rule="Implicit_WAKEUP")
    t.because("Implicit_WAKEUP", "no wait applies any more", was=rule)
    t.become(Role.WAIT, Color.MAGENTA)
    return True


def unblocked_color(t: Turn) -> bool:
    """Not blocked by a rule: magenta while the start goes on."""
    if t.s.color is Color.RED and not t.s.blocked:
        t.become(Role.WAIT, Color.MAGENTA)
        return True
    return False


def become_alone(t: Turn, evidence: Evidence) -> bool:
    """WAIT -> ALONE.  The memory is on disk before anything starts."""
    s = t.s
    forced = s.intent == "primforce"
    peer_term = t.s.peer.term if t.s.peer is not None else 0
    # beside a server that may have served without a break, this one begins no term, unless an administrator says so;
    # without data, nothing else than having heard the other server tells that it has not served meanwhile
    unknown = alone.rival(s) != "none" or not s.setup.rfs
    again = t.s.peer is None and unknown and s.intent not in ("prim", "primforce")
    t.because("become_alone", "WAIT -> ALONE", why=evidence.value, uptodate=s.uptodate, intent=s.intent)
    steps = plans.to_alone(Role.WAIT, plans.action_word(s.action), stops=(), starts=("start_both", "start_prim"))
    if forced:
        steps = tuple(
            Rfs("primary", (("force", True),), "primary_failed")
            if isinstance(step, Rfs) and step.operation == "primary"
            else step
            for step in steps
        )
        s.consistent = True
    alone.enter(
        t,
        Color.MAGENTA,
        evidence,
        uptodate=True,
        paired=False,
        lastprim=True,
        held=False,
        former="SECOND" if again else "PRIM",
        term=s.term if again else max(s.term, peer_term) + 1,
    )
    enter(t)
    t.follow(*steps)
    return True


def become_second(t: Turn) -> bool:
    """WAIT -> SECOND: the primary's data replaces this server's, which is out of date from now on."""
    s = t.s
    full = s.intent == "fullsync"
    t.because("become_second", "WAIT -> SECOND", peer=t.peer_role.value, uptodate=s.uptodate, fullsync=full)
    t.remember({ACCEPTED: "up" if accepts(s) else "down"})
    enter(t)
    s.syncing = s.setup.rfs
    t.become(Role.SECOND, Color.MAGENTA, uptodate=False, swapping=False, held=False, former="PRIM")
    if s.setup.rfs:
        s.attempts, s.synced_in_doubt = s.attempts + 1, ""
        s.attempt = f"{s.incarnation}.{s.attempts}"
        options: tuple[tuple[str, bool | str], ...] = (("attempt", s.attempt), *((("fullsync", True),) if full else ()))
        if t.s.peer is not None and lineage.unsure(s, t.s.peer):
            options = (*options, ("unsure", True))
        t.follow(Rfs("secondary", options, on_failure="secondary_failed"), Do("synchronize"))
    else:
        follow_primary(t)
        s.swap_back = wants_primary_back(t)
        t.follow(*plans.second_scripts(plans.action_word(s.action)))
    return True


def accepts(s: State) -> bool:
    """Whether an administrator wants this server to be the secondary of a primary with other virtual addresses."""
    return s.intent in ("second", "fullsync")


def follow_primary(t: Turn) -> None:
    """The peer is the last primary.  With <rfs> only when replication has reached it: it may have been heard for the
    last time while it was leaving after a split brain, and then this server knows more."""
    t.memory(lastprim=False, term=max(t.s.term, t.s.peer.term if t.s.peer is not None else 0))


def wants_primary_back(t: Turn) -> bool:
    """Whether defaultprim gives the application to this server after its reintegration (guide 13.2.3)."""
    s = t.s
    if s.setup.defaultprim == "lastprim":
        return s.resource("state.wasprim") == "up"
    return s.setup.is_default_prim


def enter(t: Turn) -> None:
    s = t.s
    s.listening, s.intent, s.blocked = False, "", ""
    s.claim, s.eligible, s.retry_at = 0, False, 0.0
    s.serving = s.syncing = False
    s.fence = 0
