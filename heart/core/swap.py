"""Swap: the roles of a complete pair are exchanged by a handshake over the heartbeats.

1. The issuer asks; the other joins (``begun``), or refuses.
2. The giver stops the application, waits until the taker has every write, and
   releases: from then on it is a secondary whose data is still up to date.
3. The taker remembers that it is primary, then starts the application.
4. The giver sees that, remembers that it is not the last primary any more,
   and follows.

Whoever loses the other in the middle acts as any secondary (or primary) that
loses its peer: both have the same data until step 3 is durable.
"""

from __future__ import annotations

from heart.core import pairing, plans
from heart.core.state import Swap
from heart.core.turn import Turn, condition, step
from heart.core.values import Color, Role, SwapNotice


def possible(t: Turn) -> str:
    """Why no swap can begin here and now, "" when it can."""
    s, peer = t.s, t.s.peer
    if s.role not in (Role.PRIM, Role.SECOND) or s.color is not Color.GREEN:
        return f"the module is {s.role} {s.color}, a swap needs PRIM green or SECOND green"
    if s.leaving or s.stopping or s.swap is not None:
        return "another operation is in progress"
    if peer is None:
        return "the other server is not heard"
    expected = Role.SECOND if s.role is Role.PRIM else Role.PRIM
    if peer.role is not expected or peer.color is not Color.GREEN:
        return f"the other server is {peer.role} {peer.color}, a swap needs {expected} green"
    if s.role is Role.PRIM and not pairing.pair_healthy(t):
        return "the secondary is not complete"
    return ""


def begin(t: Turn, *, nosync: bool) -> None:
    """Issue a swap from this server (after `possible` said nothing)."""
    s = t.s
    s.swaps += 1
    # unlike any number of an earlier incarnation, and small enough for the wire
    number = ((s.incarnation & 0xFFFFFFFF) << 12) + s.swaps
    _engage(t, s.setup.node, number, nosync, "asked")


def react(t: Turn) -> None:
    """Join, or refuse, the swap that the peer asks for."""
    s, peer = t.s, t.s.peer
    notice = peer.swap if peer is not None else None
    if peer is None or notice is None or notice.issuer != s.setup.peer or s.swap is not None:
        if s.swap_refused and (notice is None or notice.number != s.swap_refused):
            s.swap_refused = 0
        return
    mark = (peer.incarnation, notice.number)
    if mark <= s.swap_seen or notice.phase == "refused":
        return
    if not t.idle() or s.leaving or s.stopping:
        return
    fits = s.role is Role.SECOND and s.color is Color.GREEN and peer.role is Role.PRIM
    if s.role.primary:
        fits = peer.role is Role.SECOND and pairing.pair_healthy(t)
    s.swap_seen = mark
    if fits:
        _engage(t, notice.issuer, notice.number, notice.nosync, "begun")
    else:
        s.swap_refused = notice.number
        t.because("swap_refused", "no complete pair", role=s.role.value, peer=peer.role.value)


def _engage(t: Turn, issuer: str, number: int, nosync: bool, phase: str) -> None:
    s = t.s
    giver = s.role.primary
    t.log("begin_of_swap")
    t.because("swap", "gives the application" if giver else "takes the application", issuer=issuer)
    s.swap = Swap(issuer, number, giver, phase, nosync, t.now + s.setup.timeout)
    t.memory(swapping=True)
    t.follow(*(plans.give(s.role, nosync) if giver else plans.take(nosync)))


def _notice(t: Turn) -> SwapNotice | None:
    """The peer's word about this very swap."""
    s, peer = t.s, t.s.peer
    if s.swap is None or peer is None or peer.swap is None:
        return None
    same = peer.swap.issuer == s.swap.issuer and peer.swap.number == s.swap.number
    return peer.swap if same else None


def check(t: Turn) -> None:
    """Give up a swap that the other server refused, left, or never joined."""
    s, peer = t.s, t.s.peer
    swap = s.swap
    if swap is None or s.leaving or s.stopping:
        return
    notice = _notice(t)
    if swap.phase == "asked":
        if notice is not None and notice.phase == "refused":
            _abandon(t, "the other server refused it")
        elif t.now >= swap.deadline or t.lost():
            _abandon(t, "the other server did not join")
        return
    if swap.giver or peer is None or s.role is not Role.SECOND:
        return
    if notice is None and peer.role.primary:
        _abandon(t, "the other server stays primary")


def _abandon(t: Turn, why: str) -> None:
    s = t.s
    assert s.swap is not None
    begun = s.swap.phase != "asked"
    s.swap = None
    t.memory(swapping=False)
    t.because("swap_abandoned", "roles stay as they are", why=why)
    t.log("swap_abandoned", reason=why)
    if begun and s.role is Role.SECOND:
        t.follow(*plans.stay_second())
    else:
        t.follow()
        stable(t, "")


@step
def stable(t: Turn, _: str) -> None:
    """The plan is done: the role is green."""
    t.become(t.s.role, Color.GREEN)


@step
def serve(t: Turn, _: str) -> None:
    """The replicated data can be read by a secondary from now on."""
    t.s.serving = True


@condition
def swap_joined(t: Turn) -> bool:
    """Both servers take part."""
    s = t.s
    return s.swap is not None and (s.swap.phase != "asked" or _phase(t) in ("begun", "released"))


def _phase(t: Turn) -> str:
    notice = _notice(t)
    return notice.phase if notice is not None else ""


@step
def swap_begins(t: Turn, _: str) -> None:
    """The handshake is made: scripts follow."""
    _set_phase(t, "begun")
    t.become(t.s.role, Color.MAGENTA)


def _set_phase(t: Turn, phase: str) -> None:
    swap = t.s.swap
    assert swap is not None
    t.s.swap = Swap(swap.issuer, swap.number, swap.giver, phase, swap.nosync, swap.deadline)


@step
def swap_gate(t: Turn, _: str) -> None:
    """The application is stopped here; go on only if the other still has everything."""
    if not _still_on(t):
        _restart_here(t, "the secondary is not complete any more")


def _still_on(t: Turn) -> bool:
    """The taker is complete and takes part."""
    return pairing.pair_healthy(t) and _phase(t) in ("asked", "begun")


@step
def swap_refused_by_rfs(t: Turn, text: str) -> None:
    """nfsadmin could not make sure that the secondary has every write."""
    _restart_here(t, text or "replication refused it")


def _restart_here(t: Turn, why: str) -> None:
    s = t.s
    s.swap = None
    t.memory(swapping=False)
    t.because("swap_abandoned", "the application starts again here", why=why)
    t.log("swap_abandoned", reason=why)
    t.follow(*plans.swap_back(s.role))


@step
def swap_release(t: Turn, _: str) -> None:
    """From now on the other may be primary; this server stays up to date until it is told otherwise."""
    if not _still_on(t):
        _restart_here(t, "the secondary is not complete any more")
        return
    t.s.serving = False
    _set_phase(t, "released")
    t.become(Role.SECOND, Color.MAGENTA)


@condition
def swap_taken(t: Turn) -> bool:
    """The other is primary, later than this server was."""
    peer = t.s.peer
    return peer is not None and peer.role.primary and peer.serving and peer.term > t.s.term


@step
def swap_given(t: Turn, _: str) -> None:
    """The other is the last primary: remembered before the first of its writes arrives here."""
    assert t.s.peer is not None
    t.memory(lastprim=False, term=t.s.peer.term)


@condition
def swap_released(t: Turn) -> bool:
    """The former primary has given the application up, and not taken it back while this server stood still."""
    s, peer = t.s, t.s.peer
    return not s.doubted and _phase(t) == "released" and peer is not None and peer.role is Role.SECOND


@step
def swap_take(t: Turn, _: str) -> None:
    """Remember to be the primary, then be it."""
    s = t.s
    term = max(s.term, t.s.peer.term if t.s.peer is not None else 0) + 1
    s.fence = 0
    t.become(Role.PRIM, Color.MAGENTA, uptodate=True, paired=True, lastprim=True, former="PRIM", term=term)


@step
def swap_end(t: Turn, _: str) -> None:
    """Both roles are exchanged."""
    s = t.s
    s.swap = None
    t.memory(swapping=False)
    stable(t, "")


def take_back(t: Turn) -> bool:
    """The giver released, and the other secondary does not take: one of two up-to-date secondaries acts."""
    s, peer = t.s, t.s.peer
    return (
        s.swap is not None
        and s.swap.giver
        and s.swap.phase == "released"
        and peer is not None
        and peer.role is Role.SECOND
        and (_notice(t) is None or _phase(t) == "refused")
    )
