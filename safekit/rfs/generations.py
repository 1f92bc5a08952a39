"""Generations of the replicated data of a server, and what two servers must do to become equal.

Each server keeps one `DataState`.  A *generation* is a random 64 bit number that names a line of writes.
Two servers with the same current generation hold, zones in flight apart, the same data.  The server that
goes on without its peer first draws a new current generation and remembers the one it shared with the peer
as its *base*: from then on it tracks what it changes.  When the peer returns, `verdict` compares the two
states by named rules and says which work makes the target equal to the source.

Nothing here reads a clock, a file or a socket: times and random numbers are arguments.  Clocks decide only
between candidates of a timestamp resynchronisation, never which of two servers is right.

Guide: 5.4, 5.9, 13.6.4.9.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Final

FORMAT: Final = 1
MAGIC: Final = "safekit-data-state"
HISTORY: Final = 16
GRACE_S: Final = 3600.0
_LIMIT: Final = 1 << 64


class StateError(ValueError):
    """The stored state cannot be trusted; the text says why.  The data then needs a full comparison."""


@dataclass(frozen=True, slots=True)
class Copying:
    """A copy of everything that this server has begun to receive and not completed.

    generation: the source's current generation when it began; serial: the source's `full_serial` then.
    """

    generation: int
    serial: int


@dataclass(frozen=True, slots=True)
class DataState:
    """What a server durably knows of its replicated data.

    server      random id of this server's copy, drawn once
    peer        id of the server with which the last synchronisation was completed, 0 before the first
    current     generation of the data, 0 before the first start as primary or end of reintegration
    base        generation at which the peer was left, 0 while no peer lacks anything
    history     older generations, newest first, at most HISTORY
    consistent  False from just before reintegration changes its first byte until its end
    open        the replicated directories may be changed by the product; found True at a start: it crashed
    clean       no crash since the last synchronisation
    tracked     every zone that may differ from the peer's is recorded, or none is
    full_serial not 0: the next reintegration from this server, or to it, must copy everything;
                the number tells one demand from the next
    copying     see Copying; None when no full copy was interrupted
    sync_point  unix time in seconds at which both servers were last known equal, 0 never
    closed_ns   time of the file system in ns at the last orderly close, 0 before it
    idle_ns     files changed after this time (ns, ctime) may have been changed while the product did not watch,
                since the last synchronisation; 0: it always watched
    boot        names the start of the system in which the state was opened, 0 unknown
    receiving_ns  time of the file system in ns at which the first reintegration began that is not completed, 0 none
    unapplied   as the secondary of a pair this server may acknowledge what it has not applied yet; found True at a
                start: some of what the peer's application was promised may be missing here
    """

    server: int
    peer: int = 0
    current: int = 0
    base: int = 0
    history: tuple[int, ...] = ()
    consistent: bool = True
    open: bool = False
    clean: bool = True
    tracked: bool = True
    full_serial: int = 0
    copying: Copying | None = None
    sync_point: float = 0.0
    closed_ns: int = 0
    idle_ns: int = 0
    boot: int = 0
    receiving_ns: int = 0
    unapplied: bool = False

    @property
    def lineage(self) -> tuple[int, ...]:
        """The generations that this data contains, newest first."""
        return tuple(g for g in (self.current, self.base, *self.history) if g)


# --- life of a state: each returns what must be durable before its caller goes on -------------------------


def opened(state: DataState, *, recorded: bool, boot_ns: int, boot: int = 0) -> DataState:
    """Durable before anything in the replicated directories may change.

    recorded: the record of changed zones, those in flight included, was read back whole.
    boot_ns: when this system booted: after a crash, nobody watched from then on; 0 when it did not boot since.
    boot: names this start of the system.

    A system that went down in the middle of a reintegration may have kept the size and the time of a file that was
    being copied, without its content: what was changed since the reintegration began is compared by content.
    """
    crashed = state.open
    torn = crashed and boot_ns > 0 and not state.consistent
    unwatched = boot_ns if crashed else state.closed_ns
    since = max(1, state.receiving_ns - int(GRACE_S * 1e9)) if torn and state.receiving_ns else 0
    known = [t for t in (state.idle_ns, unwatched, since) if t]
    # a release that did not note when it began: nobody can tell what it was copying
    tracked = state.tracked and recorded and not (torn and not state.receiving_ns)
    return replace(
        state,
        open=True,
        clean=state.clean and not crashed,
        tracked=tracked,
        boot=boot,
        idle_ns=min(known) if known and state.peer else 0,
    )


def closed(state: DataState, closed_ns: int) -> DataState:
    """Durable after everything in the replicated directories is."""
    return replace(state, open=False, closed_ns=closed_ns)


def left_peer(state: DataState, new: int, now: float, *, in_pair: bool = True) -> DataState:
    """The server goes on, or starts, without its peer.  Durable before it acknowledges a write that the peer
    lacks.  A server which already left its peer keeps its base: what it tracks since then still counts.
    in_pair: they were equal up to this moment; else up to the last one that was recorded."""
    state = applied(state)
    if state.current == 0:
        return replace(state, current=new)
    if state.base or not state.peer:
        return state
    return replace(state, base=state.current, current=new, sync_point=now if in_pair else state.sync_point)


def acknowledging(state: DataState) -> DataState:
    """The secondary, durable before it acknowledges what it has not applied (async="second")."""
    return replace(state, unapplied=True)


def applied(state: DataState) -> DataState:
    """Once all that it had acknowledged is applied, or an administrator declares the data valid."""
    return replace(state, unapplied=False)


def in_step(state: DataState, now: float) -> DataState:
    """Refreshes the synchronisation point of a pair; recorded every few minutes on both servers."""
    return replace(state, sync_point=now) if state.peer and not state.base and state.consistent else state


def receiving(state: DataState, verdict: Verdict, source: DataState, now_ns: int) -> DataState:
    """The target, durable before reintegration changes its first byte."""
    copying = state.copying
    if verdict.kind is Kind.FULL:
        copying = Copying(source.current, source.full_serial)
    return replace(state, consistent=False, full_serial=0, copying=copying, receiving_ns=state.receiving_ns or now_ns)


def unproved_since(state: DataState) -> int:
    """Files of the target that changed since this moment (ctime, ns) are not believed for their size and time, 0: all
    are. A reintegration that was interrupted, by whatever, may have left a file with both and without its content."""
    begun = max(1, state.receiving_ns - int(GRACE_S * 1e9)) if state.receiving_ns and not state.consistent else 0
    known = [moment for moment in (state.idle_ns, begun) if moment]
    return min(known) if known else 0


def received(state: DataState, source: DataState, now: float, *, ahead: bool = False) -> DataState:
    """The target at the end: everything that the source has is here.  Durable before the source forgets
    which zones the target lacked.  `ahead`: it acknowledges before it applies, see `acknowledging`."""
    history = tuple(g for g in (source.base, *source.history) if g)[:HISTORY]
    return replace(
        state,
        peer=source.server,
        current=source.current,
        base=0,
        history=history,
        consistent=True,
        clean=True,
        tracked=True,
        full_serial=0,
        copying=None,
        sync_point=now,
        idle_ns=0,
        receiving_ns=0,
        unapplied=ahead,
    )


def delivered(state: DataState, target: int, now: float) -> DataState:
    """The source, once the target has recorded `received`; its record of zones may then be emptied."""
    history = tuple(g for g in (state.base, *state.history) if g)[:HISTORY]
    return replace(
        state, peer=target, base=0, history=history, clean=True, tracked=True, full_serial=0, sync_point=now, idle_ns=0
    )


def full_demanded(state: DataState, serial: int) -> DataState:
    """The next reintegration copies everything (`second fullsync`, config, deconfig, `rfssync full`)."""
    return replace(state, full_serial=serial, copying=None)


def unsure(state: DataState) -> DataState:
    """The data of one of both was set back, or copied: no record tells in what they differ, however often it is tried
    to make them equal."""
    return replace(state, tracked=False, sync_point=0.0)


def forced(state: DataState, serial: int) -> DataState:
    """`primforce`: the administrator declares the data valid, whatever it is."""
    return replace(full_demanded(state, serial), consistent=True, receiving_ns=0)


# --- durable form --------------------------------------------------------------------------------------------


def encode(state: DataState) -> bytes:
    """One readable line: magic, format, CRC-32 of the rest, JSON."""
    body = json.dumps(asdict(state), sort_keys=True, separators=(",", ":"))
    return f"{MAGIC} {FORMAT} {zlib.crc32(body.encode()):08x} {body}\n".encode()


def decode(data: bytes) -> DataState:
    """Raises StateError when the line is damaged or was written by a newer product."""
    try:
        magic, number, crc, body = data.decode("ascii").rstrip("\n").split(" ", 3)
    except (UnicodeDecodeError, ValueError) as error:
        raise StateError("the record of the replicated data is damaged (not one line of four fields)") from error
    if magic != MAGIC or not number.isdecimal():
        raise StateError("the record of the replicated data is damaged (no known beginning)")
    if int(number) > FORMAT:
        raise StateError(
            f"the record of the replicated data has format {number}, this release knows {FORMAT}: "
            "start the newer release again or force a full reintegration"
        )
    if f"{zlib.crc32(body.encode()):08x}" != crc:
        raise StateError("the record of the replicated data is damaged (checksum)")
    try:
        return from_fields(json.loads(body))
    except json.JSONDecodeError as error:
        raise StateError("the record of the replicated data is damaged (content)") from error


def to_fields(state: DataState) -> dict[str, object]:
    """Plain values, for the exchange of states between two servers."""
    return asdict(state)


def from_fields(fields: object) -> DataState:
    """Inverse of `to_fields`; takes nothing on trust.  Raises StateError."""
    if not isinstance(fields, Mapping):
        raise StateError("a data state must be a map")
    try:
        history = fields["history"]
        copying = fields["copying"]
        if not isinstance(history, list | tuple) or len(history) > HISTORY:
            raise StateError("a data state has no valid history")
        return DataState(
            server=_generation(fields["server"]),
            peer=_generation(fields["peer"]),
            current=_generation(fields["current"]),
            base=_generation(fields["base"]),
            history=tuple(_generation(g) for g in history),
            consistent=_flag(fields["consistent"]),
            open=_flag(fields["open"]),
            clean=_flag(fields["clean"]),
            tracked=_flag(fields["tracked"]),
            full_serial=_generation(fields["full_serial"]),
            copying=None if copying is None else _copying(copying),
            sync_point=_time(fields["sync_point"]),
            closed_ns=_generation(fields["closed_ns"]),
            idle_ns=_generation(fields["idle_ns"]),
            # releases before them did not know these
            boot=_generation(fields.get("boot", 0)),
            receiving_ns=_generation(fields.get("receiving_ns", 0)),
            unapplied=_flag(fields.get("unapplied", False)),
        )
    except KeyError as error:
        raise StateError(f"a data state lacks {error}") from error


def _generation(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LIMIT:
        raise StateError(f"{value!r} is not a number of 64 bits")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise StateError(f"{value!r} is not true or false")
    return value


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise StateError(f"{value!r} is not a time")
    return float(value)


def _copying(value: object) -> Copying:
    if not isinstance(value, Mapping) or set(value) != {"generation", "serial"}:
        raise StateError("a data state has no valid interrupted copy")
    return Copying(_generation(value["generation"]), _generation(value["serial"]))


# --- the verdict ---------------------------------------------------------------------------------------------


class Kind(Enum):
    """What has to be compared besides the names and attributes of the whole tree, which always are.

    NONE       files whose attributes differ
    BITMAP     also the zones which either server recorded
    TIMESTAMP  also every file changed after a time
    RESUME     every file by checksum
    FULL       every file is copied
    REFUSED    nothing may be done
    """

    NONE = "none"
    BITMAP = "bitmap"
    TIMESTAMP = "timestamp"
    RESUME = "resume"
    FULL = "full"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Verdict:
    """kind, the id of the rule that gave it, the sentence for the log; `newer_than` (unix seconds) is set for
    TIMESTAMP only; `overwrites` says that the target holds changes that will be lost."""

    kind: Kind
    rule: str
    sentence: str
    newer_than: float = 0.0
    overwrites: bool = False


def verdict(
    source: DataState,
    target: DataState,
    *,
    namespacepolicy: int = 4,
    grace_s: float = GRACE_S,
    unsure: bool = False,
    refused: Sequence[str] = (),
) -> Verdict:
    """What makes `target` equal to `source`.  The first rule that applies decides.

    namespacepolicy: 4 lets an interrupted full copy go on by checksums,
    any other value begins it again (guide 13.6.3).
    unsure: both servers have found that one of them was set back or copied (see `unsure`).
    refused: where a disk has refused data ("primary", "secondary"): it may lack what no record tells.
    """
    if not source.consistent:
        return Verdict(
            Kind.REFUSED,
            "source_inconsistent",
            "the primary's own data is incomplete: its reintegration was interrupted; "
            "start the server with the up-to-date data, or use primforce",
        )
    if source.current == 0:
        return Verdict(Kind.REFUSED, "source_unknown", "the primary has no generation: it did not start as primary")
    if source.unapplied:
        return Verdict(
            Kind.REFUSED,
            "unapplied_acknowledgements",
            "the primary may lack changes that it had acknowledged as the secondary: its nfsbox was killed "
            "before it had applied them; start the other server with safekit prim",
        )
    found = (
        _full(source, target, namespacepolicy)
        or (_SET_BACK if unsure else None)
        or _interrupted(source, target)
        or _related(source, target, grace_s)
        or _diverged(source, target)
    )
    if not refused or found.kind in (Kind.FULL, Kind.RESUME):
        return found
    where = " and of the ".join(refused)
    return replace(
        found,
        kind=Kind.RESUME,
        rule="disk_refused",
        sentence=f"the disk of the {where} has refused data that it had taken: every file is compared",
        newer_than=0.0,
    )


_SET_BACK = Verdict(
    Kind.RESUME,
    "set_back",
    "the data of one server was set back to an older state, or copied: every file is compared, and what differs here is"
    " overwritten",
    overwrites=True,
)


def _full(s: DataState, t: DataState, namespacepolicy: int) -> Verdict | None:
    if t.server == s.server:
        return Verdict(Kind.FULL, "cloned_server", "both servers hold the record of one server: every file is copied")
    if (
        t.copying
        and namespacepolicy == 4
        and t.copying.serial == s.full_serial
        and t.copying.generation in s.lineage
        and not t.full_serial
    ):
        return Verdict(
            Kind.RESUME,
            "full_resumed",
            "the full reintegration was interrupted: what is already equal is not copied again",
        )
    if t.copying:
        return Verdict(Kind.FULL, "full_restarted", "the full reintegration was interrupted: it begins again")
    if t.current == 0 or s.peer == 0:
        return Verdict(Kind.FULL, "first_synchronisation", "first synchronisation of the two servers")
    if s.full_serial or t.full_serial:
        where = "primary" if s.full_serial else "secondary"
        return Verdict(
            Kind.FULL,
            "full_demanded",
            f"a full reintegration was demanded on the {where} (second fullsync, config, primforce or "
            "rfssync full): every file is copied",
        )
    if s.peer != t.server or t.peer != s.server:
        return Verdict(Kind.FULL, "pairing_changed", "one of the servers was last paired with another one")
    return None


def _interrupted(s: DataState, t: DataState) -> Verdict | None:
    if t.consistent:
        return None
    if s.base and t.current in (s.base, s.current) and s.tracked and t.tracked:
        return Verdict(
            Kind.BITMAP,
            "interrupted_zones",
            "the last reintegration was interrupted: it is done again from the recorded zones",
        )
    return Verdict(
        Kind.RESUME,
        "interrupted_checksums",
        "the last reintegration was interrupted and its zones are unknown: every file is compared",
    )


def _related(s: DataState, t: DataState, grace_s: float) -> Verdict | None:
    if t.current not in (s.current, s.base):
        return None
    if s.sync_point and t.sync_point and abs(s.sync_point - t.sync_point) > grace_s:
        # Both record every few minutes that they are in step, until they part.
        older = "primary" if s.sync_point < t.sync_point else "secondary"
        return Verdict(
            Kind.RESUME,
            f"{older}_went_back",
            f"the {older} knows nothing of the last hours in which both were in step (its disk was set back "
            "to an older state, or the clock of a server is wrong): every file is compared",
            overwrites=older == "primary",
        )
    if not s.tracked:
        return _by_time(s, t, grace_s, "source_tracking_lost", "the primary's record of changed zones was lost")
    if not t.tracked:
        return _by_time(
            s, t, grace_s, "target_tracking_lost", "the secondary stopped in disorder and its record of zones was lost"
        )
    if t.current == s.current and not s.base and not t.base and s.clean and t.clean:
        return Verdict(Kind.NONE, "same_generation", "both servers are at the same generation and stopped in order")
    if s.clean and t.clean:
        return Verdict(Kind.BITMAP, "changed_zones", "the zones changed since the servers parted are compared")
    return Verdict(
        Kind.BITMAP,
        "changed_zones_and_in_flight",
        "the zones changed since the servers parted, and those in flight at the crash, are compared",
    )


def _by_time(s: DataState, t: DataState, grace_s: float, rule: str, why: str) -> Verdict:
    if not s.sync_point or not t.sync_point:
        return Verdict(Kind.RESUME, rule, f"{why}, nor is a synchronisation point known: every file is compared")
    return Verdict(
        Kind.TIMESTAMP,
        rule,
        f"{why}: files changed since the last synchronisation point are compared",
        newer_than=max(0.0, min(s.sync_point, t.sync_point) - grace_s),
    )


def _diverged(s: DataState, t: DataState) -> Verdict:
    if t.current in s.lineage:
        return Verdict(
            Kind.RESUME,
            "older_generation",
            "the secondary holds a generation older than the recorded zones: every file is compared",
        )
    if s.base and s.base == t.base and s.tracked and t.tracked:
        return Verdict(
            Kind.BITMAP,
            "split_brain",
            "both servers ran alone since they parted: what the secondary changed is overwritten, "
            "from the zones that both recorded",
            overwrites=True,
        )
    return Verdict(
        Kind.RESUME,
        "diverged",
        "the secondary holds changes that the primary lacks: they are overwritten, every file is compared",
        overwrites=True,
    )
