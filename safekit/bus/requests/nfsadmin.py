"""Requests to nfsadmin, which decides for the replicated directories of a module what heart asks for.

heart asks for roles, one after the other; nfsbox tells what happens to the stream; reintegre asks what it may do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from safekit.bus.asking import Ask, Done
from safekit.bus.requests.nfsadmin_status import NFSADMIN

State = dict[str, Any]
"""Fields of a `safekit.rfs.generations.DataState`, which whoever uses them checks."""


@dataclass(frozen=True, slots=True)
class Reconfigure(Ask[Done]):
    """Take a dynamic configuration up, of the module or of the cluster."""

    process = NFSADMIN
    op = "reconfigure"


# of heart


@dataclass(frozen=True, slots=True)
class Prepared:
    """consistent: the data is whole. unapplied: some of what it had acknowledged may be missing. base: of DataState."""

    consistent: bool = True
    unapplied: bool = False
    generation: int = 0
    base: int = 0


@dataclass(frozen=True, slots=True)
class Prepare(Ask[Prepared]):
    """Mount, and read what the last life left. Refused as nfsbox refuses it."""

    process = NFSADMIN
    op = "prepare"


@dataclass(frozen=True, slots=True)
class Generation:
    """Of the data, from now on."""

    generation: int = 0


@dataclass(frozen=True, slots=True)
class Primary(Ask[Generation]):
    """Writable. swap: after a hand-over, in the pair; force: whatever is missing in the data.

    peer, address, port: the other server and its replication flow; left out, what is configured. Refused with
    inconsistent, unapplied, peer, not_prepared.
    """

    process = NFSADMIN
    op = "primary"
    swap: bool = False
    force: bool = False
    peer: str = ""
    address: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Connected:
    """session: names the stream to the primary."""

    session: int = 0


@dataclass(frozen=True, slots=True)
class Secondary(Ask[Connected]):
    """Connect to the primary, and have the data made equal unless it is (swap).

    fullsync: copy everything. unsure: what is recorded here may not be of this history of the data. attempt: heart's
    name for this synchronisation, which every event about it tells. peer, address, port: as in `Primary`. Refused with
    connect, refused, peer, not_prepared.
    """

    process = NFSADMIN
    op = "secondary"
    swap: bool = False
    fullsync: bool = False
    unsure: bool = False
    attempt: str = ""
    peer: str = ""
    address: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Released:
    """held: writes that waited for this. generation: of the data from now on."""

    held: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Alone(Ask[Released]):
    """The primary goes on without its peer, which heart has recorded to be out of date."""

    process = NFSADMIN
    op = "alone"


@dataclass(frozen=True, slots=True)
class Demote(Ask[Done]):
    """The primary hands over. Answered when everything is at the peer. Refused with not_paired, timeout."""

    process = NFSADMIN
    op = "demote"


@dataclass(frozen=True, slots=True)
class Standby(Ask[Done]):
    """No role; the directories stay prepared."""

    process = NFSADMIN
    op = "standby"


@dataclass(frozen=True, slots=True)
class Release(Ask[Done]):
    """Unmount: the module stops."""

    process = NFSADMIN
    op = "release"


# of nfsbox


@dataclass(frozen=True, slots=True)
class ReplicationLost(Ask[Done]):
    """A primary has lost its equal secondary, or waits in vain for it: writes are held until `Alone`."""

    process = NFSADMIN
    op = "replication_lost"
    reason: str
    peer: str = ""


@dataclass(frozen=True, slots=True)
class SessionLost(Ask[Done]):
    """A stream broke for which no write waits; on the secondary, any stream."""

    process = NFSADMIN
    op = "session_lost"
    reason: str
    peer: str
    role: Literal["primary", "secondary"]


@dataclass(frozen=True, slots=True)
class SessionOpen(Ask[Done]):
    """A stream begins."""

    process = NFSADMIN
    op = "session_open"
    peer: str
    paired: bool
    role: Literal["primary", "secondary"]


@dataclass(frozen=True, slots=True)
class Bandwidth(Ask[Done]):
    """What a primary sends, KB/s; told when it changes."""

    process = NFSADMIN
    op = "rfs_bandwidth"
    replication: int
    reintegration: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """The state that nfsbox writes with the pair."""

    state: State


@dataclass(frozen=True, slots=True)
class Pair(Ask[Recorded]):
    """The end of a reintegration: heart remembers the pair durably before this is answered.

    server: number of the peer's data, 0 unknown. session: the stream. Refused with pair, or by heart.
    """

    process = NFSADMIN
    op = "pair"
    peer: str
    server: int = 0
    session: int = 0


# of reintegre; all are refused with not_wanted when no reintegration is under way


@dataclass(frozen=True, slots=True)
class Verdict:
    """kind, rule, sentence, newer_than (unix seconds), overwrites: see `safekit.rfs.generations.Verdict`.

    source_idle, target_idle: ns (ctime) since when a server's files may have been changed unseen, 0 never. server,
    generation: of our own data. uncached: our disk may lack what memory shows, and must be read.
    """

    kind: str
    rule: str
    sentence: str
    newer_than: float
    overwrites: bool
    source_idle: int
    target_idle: int
    server: int
    generation: int
    uncached: bool = False


@dataclass(frozen=True, slots=True)
class FindVerdict(Ask[Verdict]):
    """What makes our data equal to that of the primary (`source`). Changes nothing. refused: the disk of the primary
    has refused data. Refused with source, refused."""

    process = NFSADMIN
    op = "rei_verdict"
    source: State
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Begin(Ask[Verdict]):
    """The same, and take the stream: our data is marked incomplete on disk before. pid: of reintegre."""

    process = NFSADMIN
    op = "rei_begin"
    source: State
    pid: int
    refused: bool = False


@dataclass(frozen=True, slots=True)
class End(Ask[Done]):
    """Our data is equal to the primary's, which is `source` now."""

    process = NFSADMIN
    op = "rei_end"
    source: State


@dataclass(frozen=True, slots=True)
class Failed(Ask[Done]):
    """It cannot be completed now."""

    process = NFSADMIN
    op = "rei_failed"
    reason: str


@dataclass(frozen=True, slots=True)
class Progress(Ask[Done]):
    """How far it is.

    files, bytes of data (holes are none): done; files_total, bytes_total: found so far, final when `counted`; rate:
    KB/s over the last seconds; left: seconds, None when it cannot be told yet; seconds: since it began.
    """

    process = NFSADMIN
    op = "rei_progress"
    files: int
    files_total: int
    bytes: int
    bytes_total: int
    copied_bytes: int
    counted: bool
    rate: float
    left: float | None
    seconds: float
