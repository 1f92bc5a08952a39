"""What the simulated pair is made of: servers with their disks, wires, replication connections, and what a schedule
may contain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from heart.core.state import State
from heart.shell.telling import Sent

DURABLE = frozenset(
    {"rfs.uptodate", "rfs.lastprimstate", "rfs.paired", "rfs.swapping", "rfs.inconsistent", "state.local",
     "state.term", "state.former", "state.held", "state.lastprimstate", "state.rival",
     "state.lineage", "state.vouched", "state.place"}
)  # fmt: skip
PULSE, TIMEOUT = 1.0, 4.0
PAIR_TIMEOUT = 10.0
"""Seconds that nfsadmin waits for the answer of its heart, which may have died with the question."""
SPEECHLESS = 20.0
"""Seconds after which a server that waits has told what for."""
MAX_EVENTS = 60_000


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class Wire:
    """One direction of one link."""

    cut: bool = False
    loss: float = 0.0
    duplicate: float = 0.0
    slow: float = 0.05


@dataclass
class Stream:
    """A replication connection: it breaks for good as soon as something sent on it cannot arrive."""

    secondary: str
    attempt: str = ""
    live: bool = True
    synced: bool = False
    carried: set[int] = field(default_factory=set)


@dataclass
class Snapshot:
    """What a server had on its disks, and up to which write nobody can tell that it was put back: for some marks."""

    disk: dict[str, str]
    data: list[int]
    inconsistent: bool
    mark: bool
    until: int | None = None


@dataclass
class Server:
    """One server: what a power failure keeps, and what it takes."""

    name: str
    peer: str
    disk: dict[str, str] = field(default_factory=dict)
    mark: bool = False
    orphaned: bool = False
    """heart was killed and is about to be restarted by its supervisor; everything else of the module runs."""
    data: list[int] = field(default_factory=list)
    inconsistent: bool = False
    kept: Snapshot | None = None
    old: bool = False
    """Its disks were put back, or are a copy: it may serve what it knows as the newest, but replaces nothing."""

    powered: bool = False
    heart: State | None = None
    shown: dict[str, str] = field(default_factory=dict)
    life: int = 0
    frozen_until: float = 0.0
    froze_at: float = 0.0
    deaf: bool = False
    awake: float = 0.0
    confirmed: float = 0.0
    thawed_at: float = -1e9
    sent: Sent = field(default_factory=lambda: Sent(0))
    carrier: bool = True
    distracted: float = -1e9
    """When it last could not listen, or had decided to wait: it is born, wakes up, or is blocked."""
    yielded: bool = False
    """A rule made it leave the application, and it has not been in a pair since."""
    broken: bool = False
    """It has not served without a break since the pair broke, but left at `broken_at`."""
    broken_at: float = 0.0
    red_since: float = -1.0
    """Since when it waits without a word of what for, -1: it does not."""
    silent_box: bool = False
    """Its nfsbox died and nobody but a proof tells of it."""
    looks: bool = False
    """The checker of its interface runs."""
    app: bool = False
    rfs: str = "none"
    alone: bool = False
    stream: Stream | None = None
    held: list[int] = field(default_factory=list)
    tokens: dict[int, int] = field(default_factory=dict)
    backlog: list[tuple[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """What a schedule may contain."""

    rfs: bool = True
    links: int = 1
    faults: bool = True
    commands: bool = True
    prims: bool = False
    partitions: bool = True
    chaos_seconds: float = 45.0
    settle_seconds: float = 70.0
    defaultprim: str = "alone"
    failover: bool = True
    flow: bool = False
    """The first heartbeat is ident="flow"."""
    rules: str = ""
    witness: bool = False
    interface: bool = False
    """The interface of each server has a checker."""
    handle_time: float = 4.0
    syncat: float = 0.0
    """A scheduled synchronisation every so many seconds; 0: none."""
    mark: float = 60.0
    """Seconds between two marks of a whole pair; see heart.core.lineage."""
