"""Requests to nfsbox, which has the replicated directories of a module. nfsadmin decides, nfsbox carries out.

Every answer comes when the operation is done. A `state` is what `safekit.rfs.generations.to_fields` makes: nfsadmin
computes it, nfsbox has it on disk before the operation has any effect, and only keeps it. Without a state the one on
disk stays. What fails in the system is refused with code os, before `Prepare` with not_prepared, at the start with
starting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from safekit.bus import asking
from safekit.bus.asking import Ask, Done

NFSBOX = "nfsbox"

State = dict[str, Any]
"""Fields of a `safekit.rfs.generations.DataState`, which whoever uses them checks."""


@dataclass(frozen=True, slots=True)
class Ping(asking.Ping):
    """Whether it runs, and as which process."""

    process = NFSBOX


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the last life left.

    state: None when there is none; a map that is no state when it is damaged. journal: how the record of changes ended.
    dirty: files and directories that it names. roots: the replicated directories.
    """

    state: State | None = None
    journal: Literal["clean", "crash", "none", "bad"] = "clean"
    dirty: int = 0
    roots: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepare(Ask[Prepared]):
    """Repair what a crash left, check `tocheck`, put mounts in the place of the links; role standby, read-only.

    degraded: without replication. Refused with tocheck, mount, root, listen, held (by whom, and what ends that).
    """

    process = NFSBOX
    op = "prepare"
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Primary(Ask[Done]):
    """Writable.

    paired: the peer was up to date at the hand-over and comes back with its token, writes wait for it; otherwise
    changes are recorded, and a secondary may connect and be reintegrated. Refused with not_paired, journal.
    """

    process = NFSBOX
    op = "primary"
    peer: str = ""
    paired: bool = False
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Connected:
    """session: names the stream. durable: it acknowledges nothing before it is on disk. refused: our disk has refused
    data, and may lack what memory shows."""

    session: int = 0
    durable: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Secondary(Ask[Connected]):
    """Read-only; connect to the nfsbox of the primary. Answered when that one has accepted.

    source: our own address, None for any. attempt: heart's name for this synchronisation, told again by `Status`.
    Refused with connect, refused, busy.
    """

    process = NFSBOX
    op = "secondary"
    peer: str
    address: str
    port: int
    source: str | None = None
    paired: bool = False
    state: State | None = None
    attempt: str = ""


@dataclass(frozen=True, slots=True)
class Standby(Ask[Done]):
    """Read-only, without a peer."""

    process = NFSBOX
    op = "standby"
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """How many writes waited."""

    held: int = 0


@dataclass(frozen=True, slots=True)
class Alone(Ask[Held]):
    """The peer is gone: the durable record first, then what waits goes on. Refused with journal."""

    process = NFSBOX
    op = "alone"
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Cut(Ask[Done]):
    """The peer is given up: a demotion, standby or release that waits for it ends now."""

    process = NFSBOX
    op = "cut"


@dataclass(frozen=True, slots=True)
class Demote(Ask[Done]):
    """Read-only, every write acknowledged, both sides on disk.

    within: seconds. Refused with not_paired, timeout (the role is primary again then).
    """

    process = NFSBOX
    op = "demote"
    within: float = 60.0


@dataclass(frozen=True, slots=True)
class Release(Ask[Done]):
    """Unmount, links restored, record closed. Refused with release, busy."""

    process = NFSBOX
    op = "release"


@dataclass(frozen=True, slots=True)
class Kept:
    """What the state file says, None without one."""

    state: State | None = None


@dataclass(frozen=True, slots=True)
class GetState(Ask[Kept]):
    """The durable state."""

    process = NFSBOX
    op = "state_get"


@dataclass(frozen=True, slots=True)
class SetState(Ask[Done]):
    """Replace the durable state.

    On a secondary a state with consistent=False begins the stream: no operation is applied before the mark is on disk;
    consistent=True after the end of the reintegration makes this server forget what it had changed on its own. Refused
    with state.
    """

    process = NFSBOX
    op = "state_set"
    state: State


@dataclass(frozen=True, slots=True)
class Configure(Ask[Done]):
    """Attributes that may change while it runs.

    durable: async="none". listen: address of this server on the replication network, None to leave it.
    """

    process = NFSBOX
    op = "configure"
    durable: bool
    listen: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """What nfsbox does.

    session: state of the stream. session_id: names it. held: writes that wait for `Alone`. pending: changes sent and
    not acknowledged. revisit: entries to compare once more. dirty_files, dirty_dirs: what the record names.
    replication_kbs, reintegration_kbs: KB/s over some seconds. bytes_sent, frames_sent: of the stream; applied: its
    operations here. mounts: directories that answer. refused: see `Connected`. progress: what the secondary tells of
    its reintegration.
    """

    role: Literal["none", "standby", "primary", "secondary"] = "none"
    degraded: bool = False
    peer: str = ""
    address: str = ""
    port: int = 0
    session: str = "none"
    attempt: str = ""
    durable: bool = False
    session_id: int = 0
    held: int = 0
    pending: int = 0
    revisit: int = 0
    dirty_files: int = 0
    dirty_dirs: int = 0
    replication_kbs: int = 0
    reintegration_kbs: int = 0
    bytes_sent: int = 0
    frames_sent: int = 0
    applied: int = 0
    mounts: tuple[str, ...] = ()
    journal_reliable: bool = True
    refused: bool = False
    progress: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GetStatus(Ask[Status]):
    """Answered at once, whatever operation is under way."""

    process = NFSBOX
    op = "status"
