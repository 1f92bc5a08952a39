"""The one way into ALONE: every server that goes on without another passes `enter`, and proves there that it may (M0).

Silence proves nothing before this server has listened for a whole time-out: a heart that has just started or been
adopted, a module that wakes from a wait or was made primary by a command, a process that overslept may simply not have
heard yet. `listened` is therefore part of what silence means (`Turn.silent`), and `enter` asserts it once more.

Who has gone on alone on silence knows nothing of the other server: it may serve too. `state.rival` remembers that on
disk:

none      the other server is in the pair, or is known to be out of date
possible  this server went on because it heard nothing; the other one may have gone on as well
served    since then a rule made this server leave the application to the other one

A server whose rival has `served` is in doubt: it does not go on by itself before it has heard the other one. And
whoever goes on again beside a possible rival begins no new term: of two servers that meet, the one that served
without a break is the one that served last.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from heart.core import lineage
from heart.core.state import State
from heart.core.turn import Turn
from heart.core.values import Beat, Color, Role


class Evidence(StrEnum):
    """What proves that no other server runs the application, or that it is this one that goes on."""

    SILENCE = "nobody else is heard"
    LEFT = "the other server has left"
    GRANT = "granted by the other server"
    GOES_ON = "it is primary already"


RIVAL = "state.rival"


def rival(s: State) -> str:
    """none, possible or served; see the module's docstring."""
    return s.resources.get(RIVAL, "none")


def in_doubt(s: State) -> bool:
    """The other server may have served after this one: only hearing it, or an administrator, ends that."""
    return s.setup.rfs and rival(s) == "served"


def enter(t: Turn, color: Color, evidence: Evidence, **facts: Any) -> None:
    """Become ALONE, with `facts` in the same durable write.  An AssertionError is a defect: heart ends before anything
    is done, and its successor takes up what is on disk."""
    s, peer = t.s, t.s.peer
    assert proved(t, evidence), f"{s.role} -> ALONE without proof: {evidence}"
    known = evidence is Evidence.GRANT or (peer is not None and outdated(peer))
    alone_before = s.role is Role.WAIT and not s.paired
    facts["rival"] = "none" if known or (alone_before and rival(s) == "none") else "possible"
    if s.setup.rfs:
        facts |= {"lineage": lineage.longer(s), "vouched": "down"}
    t.take_role(Role.ALONE, color, **facts)


def proved(t: Turn, evidence: Evidence) -> bool:
    """Whether the proof is there."""
    s, peer = t.s, t.s.peer
    if evidence is Evidence.SILENCE:
        return t.lost() and (t.listened() or t.stopped_elsewhere())
    if evidence is Evidence.GOES_ON:
        return s.role.primary
    if peer is None:
        return False
    if evidence is Evidence.GRANT:
        return peer.grant == (s.incarnation, s.claim)
    return not peer.role.primary


def outdated(peer: Beat) -> bool:
    """The other server says that its data is not up to date, and that it does not serve."""
    return peer.uptodate != "up" and not peer.role.primary


def settle(t: Turn) -> None:
    """The other server is heard: what it says of itself ends what could only be suspected."""
    s, peer = t.s, t.s.peer
    if peer is None or rival(s) == "none" or lineage.here(s):
        return
    if outdated(peer) or peer.fenced == (s.incarnation, s.fence) or _followed(s):
        t.memory(rival="none")
        t.because("no_rival", "the other server has not served, or is followed", peer=peer.role.value)


def _followed(s: State) -> bool:
    """This server takes the other one's data, or both have the same."""
    return not s.uptodate or s.paired


def left(t: Turn) -> None:
    """A rule makes this server leave the application: whoever may serve beside it serves alone from now on."""
    if rival(t.s) == "possible":
        t.memory(rival="served", former="SECOND")
        t.because("left_to_rival", "in doubt until the other server is heard", rival="served")
