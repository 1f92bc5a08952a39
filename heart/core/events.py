"""What can happen to the automaton.  Each event is one argument of `heart.core.decide`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from heart.core.values import Beat, Command, Setup, Sibling


@dataclass(frozen=True, slots=True)
class Born:
    """First event of a heart: what the resource file and the marker say.

    ``halted``: the module was running and did not end by a stop.  ``adopt``:
    only heart died; the other processes of the module still run, so the
    role is taken over as it is (M5).  ``orphaned``: supervisord is gone too,
    so the adopted role is followed by a stopstart.  ``unix``: Unix time in
    seconds, for what has to be remembered beyond this boot.  ``gap``: seconds
    since the heart before was last awake.  ``unproved``: whether the parts of
    an adopted role are there will be told by `Proved`.  ``unconfirmed``: seconds
    since the newest heartbeat of the heart before was sent that the peer had
    confirmed.  ``place``: names this machine, "" unknown.
    """

    resources: tuple[tuple[str, str], ...] = ()
    halted: bool = False
    adopt: bool = False
    unix: float = 0.0
    gap: float = 0.0
    unproved: bool = False
    unconfirmed: float = math.inf
    place: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed.  Due at `heart.core.deadline`."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A heartbeat of the peer arrived on a link.  ``echoed``: when the heartbeat of ours was sent that it confirms
    (Beat.echo), on our clock; None when that is not one of this heart."""

    link: str
    beat: Beat
    echoed: float | None = None


@dataclass(frozen=True, slots=True)
class LinkOpened:
    """Only now can something be heard on a link (its address was not there, or it is a new one)."""

    link: str


@dataclass(frozen=True, slots=True)
class Overslept:
    """The process woke `seconds` too late: the peer gets a fresh time-out (M4)."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ordered:
    """A command arrived."""

    command: Command


@dataclass(frozen=True, slots=True)
class Ended:
    """A script that ran to its end: ``problem`` says what is wrong with it ("" nothing), ``said`` is the last that it
    wrote."""

    name: str
    problem: str = ""
    said: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """An effect ended; ``token`` names it.  ``code`` and ``text`` tell a failure.  ``scripts``: those that it ran."""

    token: int
    ok: bool = True
    code: str = ""
    text: str = ""
    consistent: bool = True
    unapplied: bool = False
    """The data may lack what this server had acknowledged as the secondary."""
    scripts: tuple[Ended, ...] = ()


@dataclass(frozen=True, slots=True)
class ResourceSet:
    """Somebody (a checker, nfsadmin, the command set) gives a resource a value."""

    name: str
    value: str
    who: str


@dataclass(frozen=True, slots=True)
class Replication:
    """News of the replication: replication_lost, nfsbox_died, secondary_lost, rfs_synced, rfs_failed.  ``attempt``: of
    the synchronisation that ended (`State.attempt`)."""

    kind: str
    reason: str = ""
    attempt: str = ""


@dataclass(frozen=True, slots=True)
class PairAsked:
    """The secondary has finished its reintegration and asks to be called up to date."""

    token: int = 0


@dataclass(frozen=True, slots=True)
class SupervisorDied:
    """The module's supervisord is gone; everything else still runs (M5)."""


@dataclass(frozen=True, slots=True)
class Proved:
    """The parts of an adopted role were looked at, and these processes are missing. ``resources``: those that they
    set. ``data``: the replicated directories cannot be reached, and nobody else deals with it."""

    names: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    data: bool = False


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What safeadmin knows of the other servers: up, down or unknown (rule function cluster()), and the servers that
    answer."""

    value: str
    siblings: tuple[Sibling, ...] = ()


@dataclass(frozen=True, slots=True)
class Configured:
    """A dynamic configuration was applied.  ``fresh``: resources whose checkers are new or have changed."""

    setup: Setup = field()
    fresh: tuple[str, ...] = ()


Event = (
    Born
    | Tick
    | Heard
    | LinkOpened
    | Overslept
    | Ordered
    | Done
    | ResourceSet
    | Replication
    | PairAsked
    | SupervisorDied
    | Proved
    | ClusterView
    | Configured
)
