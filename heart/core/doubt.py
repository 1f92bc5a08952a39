"""What a server may believe of its data after it stood still.

A heart that was stopped, starved or killed for about the time-out cannot know what happened meanwhile: the peer may
have taken this server for dead, gone on alone and acknowledged writes, and may have died since. A fresh time-out (M4)
does not answer that; only the peer can. So until a heartbeat arrives that was sent after we woke, this server neither
takes over nor calls itself up to date. When the peer stays silent, this server's data counts as out of date: it waits
for the other server, or for an administrator who knows better.

The peer itself tells the same when it has gone on alone, has stopped since, and comes back: its data is up to date and
it is in no pair, while this server still believes to be in one.
"""

from __future__ import annotations

import math

from heart.core import commands, hearing, lineage, news
from heart.core.lineage import SetBack
from heart.core.state import State
from heart.core.turn import Turn
from heart.core.values import Beat, Role


def settle(t: Turn) -> None:
    """End a doubt: in good faith when the peer was heard, else with data that is not up to date."""
    s, peer = t.s, t.s.peer
    if s.doubted and t.lost():
        _out_of_date(t, "unwatched" if math.isinf(s.stood_still) else "stood_still")
    elif s.doubted and s.heard_in_doubt:
        hearing.trust(t)
    s.heard_in_doubt = False
    if peer is not None and left_behind(s, peer):
        _out_of_date(t, "left_behind")
    if peer is not None and gone_on(s, peer):
        t.memory(uptodate=False)
        t.because("gone_on_alone", "this server is out of date", peer=peer.role.value)
    if s.synced_in_doubt and not s.doubted:
        attempt, s.synced_in_doubt = s.synced_in_doubt, ""
        news.synced(t, attempt)


def left_behind(s: State, peer: Beat) -> bool:
    """The peer has acknowledged writes alone while this server was in a pair with it."""
    if peer.role not in (Role.WAIT, Role.STOP):
        return False
    ours = s.setup.rfs and s.role.running and s.paired and s.uptodate
    # one that was set back may remember a time in which it was alone, before it was in this pair
    return ours and peer.uptodate == "up" and not peer.paired and lineage.set_back(s, peer) is not SetBack.THERE


def gone_on(s: State, peer: Beat) -> bool:
    """The primary is in no pair with this secondary. It says so once with a number to acknowledge (see
    `heart.core.pairing`), but its heart may have been replaced before that was heard."""
    if not (s.role is Role.SECOND and s.setup.rfs and s.paired and s.uptodate and not s.syncing):
        return False
    return peer.role.primary and peer.uptodate == "up" and not peer.paired


_WHY = {
    "stood_still": "this server stood still, the other one may have gone on alone",
    "unwatched": "nobody knows how long heart did not run, the other server may have gone on alone",
    "left_behind": "the other server went on alone and has stopped since",
}


def _out_of_date(t: Turn, cause: str) -> None:
    s = t.s
    hearing.trust(t)
    s.synced_in_doubt = ""
    if not s.uptodate:
        return
    seconds = {"seconds": f"{s.stood_still:.1f}"} if cause == "stood_still" else {}
    t.log(cause, **seconds)
    t.because(cause, "not up to date", why=_WHY[cause], role=s.role.value, **seconds)
    # which of both was primary last is remembered as it was: together again they find out
    t.memory(uptodate=False)
    s.fence = 0
    if s.role.primary and not s.leaving:
        commands.begin_stop(t, "stopstart", "stopstart")
