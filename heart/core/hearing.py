"""Heartbeats: what is heard, what is lost, and what "lost" may not mean (M4)."""

from __future__ import annotations

from heart.core.events import Configured, Heard, LinkOpened, Overslept
from heart.core.turn import Turn
from heart.core.values import Color, Role, Setup

OVERSLEPT_SLACK = 0.3
"""Seconds that a call may come later than two pulses before the process counts as overslept."""

HEART = "heart"
STOOD_STILL = "state.stoodstill"
"""Resource: seconds of the doubt that is not settled yet; a heart that replaces this one has it too."""


def start_listening(t: Turn) -> None:
    """A heart begins: no link has been heard yet, each gets its whole time-out."""
    s = t.s
    idents = [link.ident for link in s.setup.links]
    s.links = dict.fromkeys(idents, "init")
    s.heard_at = dict.fromkeys(idents, t.now)
    s.listening_since = t.now
    s.yield_until = t.now + s.setup.holds
    t.remember({f"heartbeat.{ident}": "init" for ident in idents})
    t.remember({"state.remote": Role.UNKNOWN.value, "state.remotecolor": Color.GREY.value})


def on_heard(t: Turn, event: Heard) -> None:
    """A heartbeat came in.  Only one that is newer than the last of its link proves the link alive."""
    s, beat = t.s, event.beat
    mark = (beat.incarnation, beat.sequence)
    if event.link not in s.links or beat.node != s.setup.peer or mark <= s.link_marks.get(event.link, (0, 0)):
        return
    s.link_marks = {**s.link_marks, event.link: mark}
    if beat.incarnation < s.peer_mark[0]:
        return
    s.heard_at = {**s.heard_at, event.link: t.now}
    if s.links[event.link] != "up":
        s.links = {**s.links, event.link: "up"}
    if event.echoed is not None:
        s.confirmed_at = max(s.confirmed_at, event.echoed)
    if mark > s.peer_mark:
        s.peer_mark = mark
        s.peer = beat
        s.yield_until = t.now + (beat.holds or s.setup.holds)
    # sent since we woke: what had waited in the sockets was read at once
    s.heard_in_doubt = s.doubted > 0 and t.now - s.doubted >= s.setup.pulse


def check_links(t: Turn) -> None:
    """Take down the links that have been silent for their time-out."""
    s = t.s
    for link in s.setup.links:
        if s.links.get(link.ident) != "down" and t.now - s.heard_at[link.ident] >= link.timeout:
            s.links = {**s.links, link.ident: "down"}
    _forget_lost_peer(t)
    show(t)


def listen_again(t: Turn) -> None:
    """What was silent so far proves nothing any more: a whole time-out begins (M0)."""
    t.s.listening_since = t.now


def on_link_opened(t: Turn, event: LinkOpened) -> None:
    """This server was deaf on a link."""
    s = t.s
    if event.link not in s.links:
        return
    if s.links[event.link] == "init":
        s.heard_at = {**s.heard_at, event.link: t.now}
    listen_again(t)


def give_up_waiting(t: Turn) -> None:
    """The other server is known to be stopped: links not heard so far count as down."""
    s = t.s
    for link in s.setup.links:
        if s.links.get(link.ident) == "init":
            s.links = {**s.links, link.ident: "down"}
    _forget_lost_peer(t)
    show(t)


def notice_sleep(t: Turn) -> None:
    """A call that comes much later than due means that we slept, not that the peer is dead."""
    s = t.s
    limit = 2 * s.setup.pulse + OVERSLEPT_SLACK
    if s.seen_at and t.now - s.seen_at > limit:
        refresh(t, t.now - s.seen_at)
    s.seen_at = t.now


def on_overslept(t: Turn, event: Overslept) -> None:
    """The shell measured that the process woke too late."""
    refresh(t, event.seconds)


def refresh(t: Turn, seconds: float) -> None:
    """Give the peer a fresh time-out on every link that is not down (M4)."""
    s = t.s
    s.heard_at = {ident: (at if s.links.get(ident) == "down" else t.now) for ident, at in s.heard_at.items()}
    listen_again(t)
    if s.listening:
        s.listen_until = max(s.listen_until, t.now + s.setup.pulse)
        # what waits in the sockets was true once: nothing is decided on it
        s.retry_at = max(s.retry_at, t.now + s.setup.pulse)
    if s.break_deadline > 0:
        # nor has the peer refused to acknowledge that it is out of date
        s.break_deadline = max(s.break_deadline, t.now + s.setup.timeout)
    t.because("overslept", "the peer gets a fresh time-out", seconds=round(seconds, 3))
    doubt(t, seconds)


def doubt(t: Turn, seconds: float) -> None:
    """This server stood still for so long that its peer may have taken it for dead and gone on alone (see
    `heart.core.doubt`)."""
    s = t.s
    if s.setup.rfs and (s.paired or s.syncing) and seconds >= s.setup.timeout - 2 * s.setup.pulse:
        s.doubted, s.stood_still = t.now, max(s.stood_still if s.doubted else 0.0, seconds)
        t.remember({STOOD_STILL: str(round(s.stood_still, 1))})


def trust(t: Turn) -> None:
    """There is no doubt any more."""
    t.s.doubted = 0.0
    if t.s.resources.get(STOOD_STILL, "0") != "0":
        t.remember({STOOD_STILL: "0"})


def on_configured(t: Turn, event: Configured) -> None:
    """Heartbeats may change while the module runs: new links start unheard, others keep their state."""
    s, setup = t.s, event.setup
    idents = [link.ident for link in setup.links]
    gone = [ident for ident in s.links if ident not in idents]
    s.links = {ident: s.links.get(ident, "init") for ident in idents}
    s.heard_at = {ident: s.heard_at.get(ident, t.now) for ident in idents}
    s.link_marks = {ident: mark for ident, mark in s.link_marks.items() if ident in idents}
    former, s.setup = s.setup, setup
    t.forget(f"heartbeat.{ident}" for ident in gone)
    _checkers_configured(t, former, event.fresh)
    t.remember({f"heartbeat.{ident}": "init" for ident in idents if f"heartbeat.{ident}" not in s.resources})
    t.because("configured", "new heartbeats are in use", links=",".join(idents))


def _checkers_configured(t: Turn, former: Setup, fresh: tuple[str, ...]) -> None:
    """Nothing is known of what new checkers look at; those that are gone leave no resource behind."""
    setup = t.s.setup
    known = {name for _, names in setup.checks for name in names}
    t.forget(name for _, names in former.checks for name in names if name not in known)
    t.remember(dict.fromkeys(fresh, "init"))
    if setup.witness and not former.witness:
        t.remember({"splitbrain.uptodate": "up"})
    elif former.witness and not setup.witness:
        t.forget(("splitbrain.uptodate",))


def _shown(t: Turn, ident: str, value: str) -> str:
    """heartbeat.flow stands for a replication flow; without <rfs> there is none (guide 13.3.3)."""
    return "down" if ident == "flow" and not t.s.setup.rfs and value != "init" else value


def show(t: Turn) -> None:
    """Publish and log what is heard.  A module that is not started says nothing: "End of stop" and the state
    STOP are its last words, the action start its first ones."""
    s = t.s
    if s.role is Role.STOP and not s.intent:
        return
    for ident, value in s.links.items():
        name, shown = f"heartbeat.{ident}", _shown(t, ident, value)
        if s.resources.get(name) != shown and t.remember({name: shown}) and shown != "init":
            t.log("resource_set", name=name, value=shown, who=HEART)
    remote = (s.peer.role, s.peer.color) if s.peer is not None else (Role.UNKNOWN, Color.GREY)
    if s.remote != remote:
        s.remote = remote
        t.remember({"state.remote": remote[0].value, "state.remotecolor": remote[1].value})
        t.log("remote_state", state=remote[0].value, color=remote[1].value)


def hush(t: Turn) -> None:
    """The module has stopped: what it heard is no longer shown."""
    s = t.s
    s.remote = (Role.UNKNOWN, Color.GREY)
    t.remember({f"heartbeat.{ident}": "init" for ident in s.links})
    t.remember({"state.remote": Role.UNKNOWN.value, "state.remotecolor": Color.GREY.value})
    t.remember({"config.same": "init", "config.fits": "init", "config.differs": "none"})


def _forget_lost_peer(t: Turn) -> None:
    if t.s.peer is not None and t.lost():
        t.s.peer = None
