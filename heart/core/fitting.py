"""What is local is compared: whether the servers of a module fit together (M8).

The peer tells what it has in its heartbeats. When ids or ports differ none arrives, and a farm has none: then counts
what safeadmin knows of the servers that answer. Rules:

- A server does not become, and does not stay, the secondary of a primary that it does not fit. Other virtual addresses
  are accepted by an administrator's `second` (`config.accepted`), nothing else is.
- A server that waits does not begin where one that it does not fit runs the application already, unheard or in a farm.
  Two that both wait hear each other and decide as ever, or an administrator's prim decides.
- Of two that run the application and do not fit, unheard, the one that began later gives way.
- A primary goes on, whatever another server has: the other one is refused.
- A difference that forbids nothing is told, and that is all.
"""

from __future__ import annotations

from heart.core import leaving, waiting
from heart.core.turn import Turn
from heart.core.values import Role, Sibling
from safekit.model.agreement import Agreement, Difference, differences, forbidding, names, text

RULE = "config_differs"
SERVING = ("ALONE", "PRIM", "UP")


def others(t: Turn) -> tuple[Sibling, ...]:
    """The other servers of the module that tell what they have, heartbeats before safeadmin."""
    s, peer = t.s, t.s.peer
    if not s.setup.mirror:
        return tuple(other for other in s.siblings if other.node != s.setup.node)
    if peer is not None:
        return (Sibling(peer.node, peer.agrees, peer.role.value),)
    return tuple(other for other in s.siblings if other.node == s.setup.peer)


def _unlike(t: Turn, agrees: Agreement) -> tuple[Difference, ...]:
    return differences(t.s.setup.agrees, agrees)


def settle(t: Turn) -> None:
    """Publish and log the comparison when something that it depends on has changed."""
    s = t.s
    if s.role is Role.STOP and not s.intent:
        s.compared = ()
        return
    told_by = s.siblings if s.peer is None or not s.setup.mirror else (s.peer.node, s.peer.agrees)
    seen = (s.setup.agrees, told_by)
    if seen == s.compared:
        return
    s.compared = seen
    told = [(other, _unlike(t, other.agrees)) for other in others(t) if other.agrees]
    unlike = tuple({difference.name: difference for _, found in told for difference in found}.values())
    fits = not forbidding(unlike)
    changed = t.remember(
        {
            "config.same": "unknown" if not told else "down" if unlike else "up",
            "config.fits": "unknown" if not told else "up" if fits else "down",
            "config.differs": names(unlike),
        }
    )
    for other, found in told if changed else ():
        if forbidden := forbidding(found):
            t.log("config_conflict", peer=other.node, what=text(forbidden, f"on {s.setup.node}", f"on {other.node}"))
            t.because(RULE, "told", peer=other.node, **{d.name: _both(d) for d in forbidden})


def _both(difference: Difference) -> str:
    """For people; a value may hold any sign."""
    return f"{difference.mine or 'none'} here, {difference.theirs or 'none'} there"


def unfit(t: Turn) -> tuple[Difference, ...]:
    """Why this server may not be the secondary of the primary that it hears. Other addresses are accepted by `second`,
    and by no other way into the pair."""
    s, peer = t.s, t.s.peer
    if peer is None or not peer.role.primary:
        return ()
    word = waiting.accepts(s) if s.role is Role.WAIT else s.resource(waiting.ACCEPTED) == "up"
    return forbidding(_unlike(t, peer.agrees), word=word)


def occupied(t: Turn) -> tuple[Difference, ...]:
    """Why this server, which waits, may not begin: one that it does not fit runs the application, unheard."""
    if t.s.setup.mirror and t.heard():
        return ()
    for other in others(t):
        if other.state in SERVING and (found := forbidding(_unlike(t, other.agrees))):
            return found
    return ()


def blocked(t: Turn) -> bool | None:
    """In WAIT: what `waiting.block` says when this server does not fit, None when it fits."""
    s = t.s
    if s.intent in ("prim", "primforce") and t.peer_role.primary:
        # refused in any case, with words of its own
        return None
    found = unfit(t) or occupied(t)
    if not found:
        return None
    s.claim = 0
    return waiting.block(t, RULE, tuple((d.name, f"{d.mine}/{d.theirs}") for d in found))


def gives_way(t: Turn) -> bool:
    """In a running role: leave it when it does not fit. True when that was begun."""
    s = t.s
    found: tuple[Difference, ...] = ()
    if s.role is Role.SECOND:
        found = unfit(t)
    elif s.role.primary or s.role is Role.UP:
        found = _later(t)
    if not found:
        return False
    inputs = tuple((d.name, f"{d.mine}/{d.theirs}") for d in found)
    t.because(RULE, f"{s.role} -> WAIT", **dict(inputs))
    leaving.leave(t, "stopwait")
    return True


def _later(t: Turn) -> tuple[Difference, ...]:
    """What differs from a server that has run the application for longer than this one, and is not heard."""
    s = t.s
    if s.setup.mirror and t.heard():
        return ()
    own = next((one for one in s.siblings if one.node == s.setup.node), None)
    if own is None or own.state not in SERVING:
        return ()
    for other in others(t):
        found = forbidding(_unlike(t, other.agrees)) if other.state in SERVING else ()
        if found and (other.since, other.node) < (own.since, own.node):
            return found
    return ()
