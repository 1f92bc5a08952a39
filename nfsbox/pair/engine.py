"""What the mounts of a module share: the role, the order of changes, the stream to the peer, the record of changes.

Order of a change (each step is needed by the next):
1. what it may change is recorded durably (tracker), unless it already is;
2. under the order lock: the role allows it, it is applied here and sent, in one order for both servers;
3. its thread waits for the acknowledgement; when the stream of a paired peer is lost, until `alone`, by which it
   stands, or until this server leaves its role, by which it fails: the peer may have gone on without it.

The order lock is held for a local system call and a send, never while an acknowledgement is awaited.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Final

from nfsbox.pair.commit import Disks
from nfsbox.pair.files import File, Files
from nfsbox.pair.hidden import PlaceHolders
from nfsbox.pair.latency import Latency
from nfsbox.pair.revisit import Revisit
from nfsbox.pair.stream import State, Stream
from nfsbox.pair.times import Times
from nfsbox.pair.tracking import Tracker
from safekit import syscalls
from safekit.bus.asking import Ask, Done
from safekit.bus.requests.nfsadmin import ReplicationLost, SessionLost
from safekit.disk import steps
from safekit.rfs.changes import Mode
from safekit.rfs.exclusions import Exclusions
from safekit.rfs.tree import KEPT, Tree
from safekit.rfs.wire import Channel, Op

log = logging.getLogger("nfsbox")


class Role(Enum):
    """Of this server, for its replicated directories."""

    STANDBY = "standby"
    PRIMARY = "primary"
    SECONDARY = "secondary"


@dataclass(frozen=True)
class Root:
    """A replicated directory: where users see it, where its data is, what of it stays local."""

    index: int
    mount: bytes
    backing: bytes
    exclusions: Exclusions
    tocheck: tuple[bytes, ...] = ()

    @cached_property
    def tree(self) -> Tree:
        """The data. Every change of its names in this process goes through it, and nobody else makes any."""
        return Tree(self.backing)


@dataclass
class Settings:
    """Attributes of <rfs> that matter here; seconds and bytes."""

    sendtimeout: float = 30.0
    locktimeout: float = 100.0
    durable: bool = False  # async="none": the secondary acknowledges what is on its disk
    acl: bool = False
    zone_size: int = 8 << 20
    packet: int = 8 << 20
    bandwidth: float | None = None  # bytes per second of a resynchronisation
    writeback: bool = False
    checkpoint: float = 120.0


#: Seconds within which a paired peer acknowledges what is under way when this server leaves its role.
DRAIN: Final = 10.0

#: (what, fields) told to the control thread: replication_lost, session_lost
Notify = Callable[[Ask[Done]], None]


def find_name(tree: Tree, exclusions: Exclusions, inode: int) -> bytes | None:
    """A replicated name of a file that is open, by the number of its inode; None when it has none. Looks everywhere."""
    pending = [b""]
    while pending:
        directory = pending.pop()
        try:
            with tree.inside(directory) as inside:
                for entry in inside.entries():
                    path = directory + b"/" + entry.name if directory else entry.name
                    if exclusions.match(path):
                        continue
                    if entry.kind == stat.S_IFDIR:
                        pending.append(path)
                    elif entry.inode == inode:
                        return path
        except OSError:
            continue  # removed meanwhile
    return None


def _inode(tree: Tree, path: bytes) -> int:
    status = tree.status(path)
    return 0 if status is None else status.st_ino


class Refused(Exception):
    """A role change that cannot be made now; the text says why."""


class Engine:
    """See above. Public methods are safe from any thread."""

    def __init__(self, roots: Sequence[Root], tracker: Tracker, settings: Settings, notify: Notify) -> None:
        self.roots = tuple(roots)
        self.tracker = tracker
        self.settings = settings
        self.notify = notify
        self.order = threading.Lock()
        self.files = Files()
        self.disks = Disks([root.backing for root in self.roots], tracker.directory / "refused")
        self.role = Role.STANDBY
        self.writable = False
        self.stream: Stream | None = None
        self.awaiting = False  # paired, but the peer has not connected yet: changes wait
        self.revisit = Revisit()
        self.times = Times(lambda root: self.roots[root].tree)
        self.held = 0  # threads whose change waits for the fate of a lost peer
        self._holding = threading.Lock()
        self.latency = Latency()
        self.generation = 0  # rises with every role change: what caches hold is void
        self.relief: list[Callable[[], None]] = []  # one of each mount, see `slow`
        self._leaving = False
        self.place_holders = PlaceHolders(tracker.directory)
        self.peer_has_all = True
        """All that was changed up to the last change of role is on the disk of the peer that was in the pair."""
        self._attached = threading.Event()
        self._attached.set()
        self._identity = 0
        self._strict_epoch = 0  # of the record: began when the secondary became strict
        self._unsettled: set[int] = set()  # threads with an operation whose fate at the peer is not noted yet

    @property
    def disk_refused(self) -> bool:
        """In this life, until it was compared: the system tells only once that a page was not written, and then calls
        it written. In a later one more is compared (`Disks.refused`)."""
        return self.disks.refused_now

    @property
    def in_order(self) -> bool:
        """Whether both disks have everything, so that no record is needed."""
        return self.peer_has_all and not self.disk_refused

    # --- used by every change -------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Raises EROFS when this server is not primary; waits for a peer that is about to come back."""
        if self.awaiting:
            self.slow()
            self._attached.wait()
        if not self.writable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    @contextlib.contextmanager
    def order_with(self, paths: threading.Lock) -> Iterator[None]:
        """Both locks. A request that waits for nobody is answered under `paths`, and may need the order lock to tell
        the peer that a file is closed: so `paths` is never waited for while the order lock is held."""
        while True:
            self.order.acquire()
            if paths.acquire(blocking=False):
                break
            self.order.release()
            with paths:
                pass
        try:
            yield
        finally:
            paths.release()
            self.order.release()

    def slow(self) -> None:
        """A change waits for the peer, for long: reads of all mounts go on in other threads (R3, R8)."""
        for relieve in tuple(self.relief):
            relieve()

    def settle(self, stream: Stream | None, number: int) -> int:
        """Wait until a change is acknowledged or the peer's loss is decided; the errno of a secondary that is being
        resynchronised, else 0. Raises EIO when this server left its role without that acknowledgement."""
        if stream is None:
            return 0
        began = time.monotonic()
        code = stream.wait(number)
        self.latency.note(time.monotonic() - began)
        if code == errno.ENOTCONN:
            if stream.was is State.PAIRED:
                self._count_held(1)
                self.slow()
                try:
                    if not stream.fate():
                        raise OSError(errno.EIO, "the secondary did not acknowledge this change")
                finally:
                    self._count_held(-1)
            return 0
        return code

    def _count_held(self, more: int) -> None:
        with self._holding:
            self.held += more

    def lenient(self, stream: Stream) -> bool:
        """Under the order lock, after a send: True while the peer is being resynchronised. The caller then says
        `settled` once it has noted what failed there; the end of the resynchronisation waits for that."""
        if stream.strict:
            return False
        self._unsettled.add(threading.get_ident())
        return True

    def settled(self) -> None:
        """See `lenient`."""
        self._unsettled.discard(threading.get_ident())

    def visible(self, file: File) -> bytes | None:
        """A path by which the peer knows a file; None for one that has lost all its names. Under the order lock it
        stays true."""
        root = self.roots[file.root]
        tree = root.tree
        for path in (file.path, file.named):
            if path is not None and not root.exclusions.match(path) and _inode(tree, path) == file.inode:
                return path
        if file.orphan:
            return None
        # It was opened by a name that is gone. Where the others are, nobody has noted.
        file.named = find_name(tree, root.exclusions, file.inode)
        file.orphan = file.named is None and not file.temporary
        return file.named

    def flush_times(self) -> None:
        """Send the times that are due."""
        while self.times:
            with self.order:
                self.times.send(self.stream if self.writable else None, 200)

    # --- streams --------------------------------------------------------------------------------------------

    def new_identity(self) -> int:
        """Number of the next session."""
        self._identity += 1
        return self._identity

    def expected_identity(self) -> int:
        """The number that the next session will have."""
        return self._identity + 1

    def attach(self, channel: Channel, peer: str, *, paired: bool, exchanges: bool = False) -> Stream:
        """A secondary has connected. Raises Refused."""
        with self.order:
            if self.role is not Role.PRIMARY:
                raise Refused("this server is not primary")
            if self.stream is not None:
                raise Refused(f"this server has a secondary already ({self.stream.peer})")
            if paired and not self.awaiting:
                raise Refused("the pair was dissolved: a resynchronisation is needed")
            if not paired and self.awaiting:
                raise Refused("the hand-over is not finished")
            stream = Stream(
                channel,
                self.new_identity(),
                peer,
                paired=paired,
                exchanges=exchanges,
                sendtimeout=self.settings.sendtimeout,
                locktimeout=self.settings.locktimeout,
                on_lost=self._stream_lost,
                on_slow=self.slow,
                visible=self.visible,
            )
            self.revisit = Revisit()
            self.stream = stream
            self.awaiting = False
            self.writable = True
        self._attached.set()
        return stream

    def _stream_lost(self, stream: Stream, was: State, reason: str) -> None:
        # May be called under the order lock (a send failed) or not: only plain assignments here.
        if was is State.PAIRED:
            if self._leaving:
                stream.decide(kept=False)  # nobody else will: what leaves the role waits for the held ones
            self.notify(ReplicationLost(reason, stream.peer))
        else:
            if self.stream is stream:
                self.stream = None
            self.notify(SessionLost(reason, stream.peer, "primary"))

    # --- roles ----------------------------------------------------------------------------------------------

    def become_primary(self, *, paired: bool, tracking: Callable[[Mode], None] | None = None) -> None:
        """Writable. `paired`: changes wait until the peer, which is up to date, connects."""
        if self.role is not Role.PRIMARY and tracking is not None:
            tracking(Mode.PAIRED if paired else Mode.ALONE)
        with self.order:
            self.awaiting = paired
            if paired:
                self._attached.clear()
            else:
                self._attached.set()
            self.generation += 1
            self.role = Role.PRIMARY
            self._keep_directories(KEPT)
            # Only with a stream: a change that began in the role before must not pass by the awaited peer.
            self.writable = not paired

    def await_failed(self, reason: str) -> bool:
        """The peer did not come back after a hand-over; True when it was awaited."""
        if not self.awaiting:
            return False
        self.notify(ReplicationLost(reason))
        return True

    def alone(self) -> int:
        """The peer is gone: what it lacks is recorded for good, then what was held goes on. Returns how many changes
        were held. Raises OSError when the record cannot be written (they stay held)."""
        self.tracker.alone()
        with self.order:
            stream, self.stream = self.stream, None
            if self.awaiting:
                self.awaiting, self.writable = False, True
        held = self.held
        if stream is not None:
            stream.close()
            stream.decide(kept=True)
        self._attached.set()
        return held

    def cut(self, reason: str) -> None:
        """The peer is given up while this server hands over, or leaves: what waits for it ends now. Changes under way
        fail; they stay recorded as in flight."""
        stream = self.stream
        if stream is not None:
            stream.fail(reason)
            stream.decide(kept=False)

    def demote(self, timeout: float, token: bytes) -> bool:
        """Read-only, with everything acknowledged by the peer and on its disk. False when there is no paired peer.
        Raises Refused when the peer did not follow in time; this server is then primary still."""
        self.sync_mounts()
        with self.order:
            stream = self.stream
            if stream is None or stream.state is not State.PAIRED:
                return False
            while self.times:
                self.times.send(stream if self.writable else None, 1000)
            self.writable = False
            number = stream.send(Op.HANDOVER, 0, body=token)
        code = stream.wait(number, timeout)
        if code:
            with self.order:
                self.writable = True
            raise Refused(stream.reason or os.strerror(code))
        with self.order:
            self.stream = None
            self.role = Role.STANDBY
            self.generation += 1
            self._keep_directories(0)
        stream.close()
        return True

    def _keep_directories(self, keep: int) -> None:
        """A primary is asked for the same directories again and again. A secondary looks each time: what root has
        changed beside the mount then fails, and is found at once."""
        for root in self.roots:
            root.tree.keep_open(keep)

    def become_readonly(self, role: Role) -> None:
        """Standby or secondary. Changes under way are acknowledged by a paired peer first; those that it does not
        acknowledge fail, because it may become primary without them."""
        self._leaving = True
        try:
            self._leave(role)
        finally:
            self._leaving = False

    def _leave(self, role: Role) -> None:
        self.peer_has_all = True
        self._drain(last=False)  # what is under way keeps the mounts from answering
        if self.writable:
            self.sync_mounts()
        self._drain(last=True)
        with self.order:
            self.role = role
            self.generation += 1
            self._keep_directories(0)
            stream, self.stream = self.stream, None
            self.awaiting = False
        if stream is not None:
            stream.close()
            stream.decide(kept=False)
        self._attached.set()

    def _drain(self, *, last: bool) -> None:
        """Have a paired peer acknowledge everything sent so far. `last`: nothing is sent afterwards, and the peer,
        which is about to take over, has it on its disk."""
        number = 0
        with self.order:
            stream = self.stream
            if stream is not None and stream.state is State.PAIRED:
                while self.times:
                    self.times.send(stream if self.writable else None, 1000)
                number = stream.send(Op.PING, 0)
            if last:
                self.writable = False
        if stream is not None and number:
            stream.wait(number, DRAIN)
            if last and not stream.lost:
                with self.order:
                    number = stream.send(Op.CHECKPOINT, 0, flags=0)
                self.peer_has_all = stream.wait_late(number, DRAIN) == 0
        if stream is not None and stream.was is State.PAIRED and stream.lost:
            self.peer_has_all = False
            stream.decide(kept=False)

    def sync_mounts(self) -> None:
        """Bring what the kernel holds back (mapped files, write-back) to us. What it could not write, now or long ago,
        is no part of what was acknowledged, and keeps nobody from leaving a role: whoever syncs the file is told."""
        for root in self.roots:
            try:
                descriptor = steps.mount_open(root.mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue  # not mounted: nothing is held back
            try:
                syscalls.sync_filesystem(descriptor)  # tries everything, whatever fails
            except OSError as error:
                log.warning(
                    "%s: not everything that processes wrote without a sync could be written (%s)",
                    os.fsdecode(root.mount),
                    error.strerror,
                )
            finally:
                os.close(descriptor)

    # --- checkpoints ----------------------------------------------------------------------------------------

    def checkpoint(self, timeout: float = 600.0) -> bool:
        """Put everything of the older epochs on both disks and forget them. False when the pair broke. Raises
        OSError when the disk here refuses, or has ever refused, what they tell of."""
        if self.disk_refused:
            raise OSError(errno.EIO, "this disk has refused data before: after a power failure it may lack it")
        number = self.tracker.epoch()
        if not self.tracker.waiting:
            return True
        with self.order:
            stream = self.stream
            if stream is None or stream.state is not State.PAIRED:
                return False
            sent = stream.send(Op.CHECKPOINT, 0, flags=0)
        self.sync_backing()
        if stream.wait_late(sent, timeout):
            return False
        self.tracker.checkpointed(number)
        return True

    def sync_backing(self) -> None:
        """Put the data of all replicated directories on disk. Raises OSError."""
        self.disks.sync()

    # --- the end of a resynchronisation ---------------------------------------------------------------------

    def make_strict(self, body: bytes, of: Stream | None) -> Stream | None:
        """First phase of END of the session `of`: None when there are entries to revisit; else the stream, strict from
        this point of the order on, with everything before on both disks. Raises Refused when it broke, OSError when
        the disk here refuses: then nothing recorded is forgotten."""
        self._strict_epoch = self.tracker.epoch()
        with self.order:
            stream = self.stream
            if stream is None or stream is not of or stream.state is State.LOST:
                raise Refused("the stream to the secondary broke")
            # What is on its way may fail there, and must be noted before the list of revisits is found empty.
            # The threads concerned need no order lock for that; new operations wait for one round trip.
            while self._unsettled and not stream.lost:
                time.sleep(0.0005)
            if self.revisit.entries:
                return None
            number = stream.send(Op.STRICT, 0, body=body)
            stream.strict = True
        # What was changed before this point is recorded in older epochs only, which the pair forgets. A power failure
        # would take it from this server's memory; the secondary, which has it, would go on alone and not send it back.
        self.sync_backing()
        code = stream.wait(number, 600.0)
        if code:
            raise Refused(stream.reason or os.strerror(code))
        return stream

    def make_paired(self, stream: Stream) -> None:
        """Second phase, once the peer's being up to date is recorded durably. Raises Refused."""
        with self.order:
            if self.stream is not stream or not stream.pair():
                raise Refused("the stream to the secondary broke")
        self.tracker.paired(0 if self.disk_refused else self._strict_epoch)
