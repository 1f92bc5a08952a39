"""The replicated directories of a module on this server, as a whole: what becomes of them when nfsadmin says so.

The parts: the directories themselves (`fs/directories.py`), the state file (`state.py`), where a secondary finds this
server (`pair/listening.py`), this server as a secondary (`pair/follower.py`), the order of changes (`pair/engine.py`).
Everything here blocks; the bus side (control.py) calls it in threads, one operation at a time except `status`.
The order inside each operation is what makes it safe; see the comments.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from nfsbox.fs.directories import Directories
from nfsbox.pair.engine import Engine, Refused, Role
from nfsbox.pair.follower import Follower
from nfsbox.pair.latency import Bandwidth, Totals
from nfsbox.pair.listening import Listening
from nfsbox.pair.server import Server
from nfsbox.pair.stream import State, Stream
from nfsbox.pair.tracking import Tracker
from nfsbox.place import BoxError, Fields, Place, roots_of, settings_of, text_of
from nfsbox.state import StateFile
from safekit.bus.asking import Ask, Done
from safekit.bus.requests import nfsadmin
from safekit.bus.requests import nfsbox as asked
from safekit.disk.files import sync_directory
from safekit.model.types import Rfs
from safekit.rfs import journal
from safekit.rfs.changes import Mode

log = logging.getLogger("nfsbox")


class Box:
    """One per process. `notify` tells nfsadmin; `pair(peer, server)` asks it to record the pair durably
    and returns the state to write, or raises BoxError."""

    def __init__(
        self,
        place: Place,
        rfs: Rfs,
        notify: Callable[[Ask[Done]], None],
        pair: Callable[[str, int, int], Fields],
    ) -> None:
        self.place = place
        self.roots = roots_of(rfs)
        self.settings = settings_of(rfs)
        self.degraded = False
        self.prepared = False
        self._state = StateFile(place.directory / "state")
        self._notify = notify
        self._ask_pair = pair
        self._tracker = Tracker(place.directory, rfs.ruzone_blocksize)
        self.engine = Engine(self.roots, self._tracker, self.settings, notify)
        self._directories = Directories(self.engine, place.directory, place.module)
        self.listening = Listening(place.listen, self._serve)
        self._follower = Follower(place, self.engine, notify, self._take_token)
        self._loaded = journal.Loaded()
        self._token: bytes | None = None  # of a hand-over, on both sides of it
        self._peer = ""
        self._bandwidth = Bandwidth()
        self._totals = Totals()
        self._next_checkpoint = 0.0
        self._awaiting_since = 0.0

    # --- durable state --------------------------------------------------------------------------------------

    def state(self) -> Fields | None:
        """See `StateFile.read`."""
        return self._state.read()

    def set_state(self, fields: Mapping[str, Any]) -> None:
        """Durable when it returns. Raises BoxError."""
        with self._state.recording:
            self._record(fields)

    def _record(self, fields: Mapping[str, Any]) -> None:
        state = self._state.write(fields)
        if self.engine.role is Role.SECONDARY:
            if not state.consistent:
                self._follower.begin()
            elif self._follower.strict:
                self._forget_journal()
                self._follower.proved()

    def _save(self, fields: Fields | None) -> None:
        if fields is not None:
            self.set_state(fields)

    def _forget_journal(self) -> None:
        """This server is equal to its peer: what it changed on its own does not count any more."""
        for path in self.place.directory.glob(journal.PREFIX + "*"):
            path.unlink()
        sync_directory(self.place.directory)
        self._loaded = journal.Loaded()

    # --- prepare and release --------------------------------------------------------------------------------

    def prepare(self, *, degraded: bool = False) -> asked.Prepared:
        """Mount read-only. Raises BoxError: tocheck, mount, held, root, listen."""
        if not self.prepared:
            self.place.directory.mkdir(mode=0o770, parents=True, exist_ok=True)
            self._directories.take()
            self._state.reserve()
            self.degraded = degraded
            self._directories.check()
            try:
                self._loaded = journal.load(self.place.directory)
                self._directories.mount(degraded=degraded)
                if not degraded:
                    self.listening.begin()
            except BaseException:
                self._directories.give_up()
                raise
            self._directories.note_places()
            self.prepared = True
        files, directories = len(self._loaded.changes.files), len(self._loaded.changes.directories)
        roots = tuple(os.fsdecode(root.mount) for root in self.roots)
        return asked.Prepared(self.state(), self._journal(), files + directories, roots)

    def _journal(self) -> Literal["clean", "crash", "none", "bad"]:
        if not self._loaded.present:
            return "none"
        if not self._loaded.reliable:
            return "bad"
        return "clean" if self._loaded.closed else "crash"

    def _serve(self, address: tuple[str, int]) -> Server:
        return Server(
            self.engine,
            self.place.module,
            self.place.keys,
            address,
            on_open=self._on_open,
            state=self.state,
            pair=self._pair,
            token=lambda: self._token,
        )

    def release(self) -> None:
        """Unmount, links restored, journal closed. Raises BoxError."""
        if not self.prepared:
            self._directories.clear_leftovers()
            return
        self._follower.end()
        was_primary = self.engine.role is Role.PRIMARY
        if self.engine.stream is not None and self.engine.stream.state is State.LOST:
            self._tracker.alone()
        self.engine.become_readonly(Role.STANDBY)
        try:
            self._directories.unmount()
            # Only now nothing can change any more.
            on_disk = self.engine.disks.try_sync()
            self._close_record(clean=was_primary and on_disk and self.engine.in_order)
        except OSError as error:
            raise BoxError("release", f"the replicated directories could not be released: {error.strerror}") from None
        finally:
            self.listening.end()
        self._directories.leave()
        self.prepared = False
        self.degraded = False

    # --- roles ----------------------------------------------------------------------------------------------

    def _require(self) -> None:
        if not self.prepared:
            raise BoxError("not_prepared", "the replicated directories are not mounted: prepare first")

    def primary(self, ask: asked.Primary) -> None:
        """Writable. With `paired`, the peer was handed over to and comes back with its token."""
        self._require()
        paired = ask.paired
        if paired and self.engine.role is Role.PRIMARY:
            return  # the hand-over did not come about: the stream, or what is held for it, is as it was
        if paired and self._token is None and self._follower.token is None:
            raise BoxError("not_paired", "there was no hand-over: start as primary without a peer")
        self._follower.end()
        self._save(ask.state)
        if not paired:
            self._token = None
            if self.engine.role is Role.PRIMARY and (self.engine.stream is not None or self.engine.awaiting):
                self._alone_engine()
                return
        self._peer = ask.peer
        if self.engine.role is not Role.PRIMARY:
            try:
                self._tracker.start(
                    Mode.PAIRED if paired else Mode.ALONE, None if paired else journal.load(self.place.directory)
                )
            except OSError as error:
                raise BoxError("journal", f"changes cannot be recorded: {error.strerror}") from None
            for mount in self._directories.mounts:
                mount.forget_pages()  # before anybody may change a page of what was there before
        self.engine.become_primary(paired=paired)
        self._awaiting_since = time.monotonic()
        self._next_checkpoint = time.monotonic() + self.settings.checkpoint

    def secondary(self, ask: asked.Secondary) -> asked.Connected:
        """Read-only; connect to the primary. The attempt is kept for a nfsadmin that is restarted. Raises BoxError:
        connect, refused."""
        self._require()
        paired = ask.paired
        self._follower.end()
        self._to_readonly(Role.SECONDARY, keep_journal=not paired)
        self._peer = ask.peer
        connected = self._follower.connect(ask, self._token)
        if paired:
            self._save(ask.state)
            self._token = None
            self._forget_journal()
            self._follower.go_on()
        elif ask.state is not None:
            # An interrupted reintegration left the mark already; the stream waits for the new verdict all the same.
            with self._state.recording:
                self._state.write(ask.state)
        return connected

    def standby(self, *, state: Fields | None) -> None:
        """Read-only without a peer."""
        self._require()
        self._follower.end()
        self._to_readonly(Role.STANDBY, keep_journal=True)
        self._save(state)

    def _to_readonly(self, role: Role, *, keep_journal: bool) -> None:
        was_primary = self.engine.role is Role.PRIMARY
        self.engine.become_readonly(role)
        if was_primary:
            self._leave_pages()
        if was_primary and keep_journal:
            self.engine.disks.try_sync()
        self._close_record(clean=was_primary and self.engine.in_order)
        if keep_journal:
            self._loaded = journal.load(self.place.directory)

    def _leave_pages(self) -> None:
        for mount in self._directories.mounts:
            mount.leave_pages()

    def _close_record(self, *, clean: bool) -> None:
        """The record of changes ends. One that does not say how is read as after a crash: more is compared."""
        try:
            self._tracker.stop(clean=clean)
        except OSError as error:
            log.error("the end of the record of changes cannot be written in %s: %s", self.place.directory, error)

    def alone(self, *, state: Fields | None) -> int:
        """The peer is gone. Durable record, then what was held goes on. Raises BoxError."""
        self._require()
        if self.engine.role is not Role.PRIMARY:
            # A secondary that takes over, or a server of which the peer went away before the pair stood.
            self.primary(asked.Primary(state=state))
            return 0
        self._save(state)
        self._token = None
        return self._alone_engine()

    def _alone_engine(self) -> int:
        try:
            return self.engine.alone()
        except OSError as error:
            raise BoxError("journal", f"changes cannot be recorded: {error.strerror}: nothing is released") from None

    def demote(self, within: float) -> None:
        """Read-only, all acknowledged, on the disk of the peer, and on this one if it takes it. Raises BoxError:
        not_paired, timeout; this server is primary then. What fails afterwards takes nothing back: the peer has
        everything, and may be primary by now."""
        self._require()
        token = secrets.token_bytes(16)
        try:
            if not self.engine.demote(within, token):
                raise BoxError("not_paired", "there is no up to date secondary to hand over to")
        except Refused as error:
            raise BoxError("timeout", f"the secondary did not follow: {error}") from None
        self._token = token
        self._leave_pages()
        on_disk = self.engine.disks.try_sync()
        self._close_record(clean=on_disk and not self.engine.disk_refused)

    def _take_token(self, token: bytes) -> None:
        self._token = token

    # --- called by the server's threads ----------------------------------------------------------------------

    def _on_open(self, stream: Stream, paired: bool) -> None:
        self._peer = stream.peer
        if paired:
            self._token = None
        self._notify(nfsadmin.SessionOpen(stream.peer, paired, "primary"))

    def _pair(self, peer: str, server: int) -> Fields | None:
        stream = self.engine.stream
        try:
            state = self._ask_pair(peer, server, stream.identity if stream is not None else 0)
            with self._state.recording:
                # It was asked for in a thread of its own: the peer may have been lost meanwhile, and `alone` written.
                if stream is None or stream.lost:
                    raise Refused("the stream to the secondary broke")
                self._record(state)
        except BoxError as error:
            raise Refused(error.text) from None
        return state

    # --- every second ----------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Bandwidth, clock, checkpoints; call every second from one thread. Raises nothing for a lost peer, nor for a
        disk that refuses."""
        engine = self.engine
        if engine.role is not Role.PRIMARY:
            self._bandwidth.stop()
            for mount in self._directories.mounts:
                mount.renew_pages()
            return
        stream = engine.stream
        if self._bandwidth.add(*((stream.replicated, stream.reintegrated) if stream is not None else (0, 0))):
            replication, reintegration = self._bandwidth.shown
            self._notify(nfsadmin.Bandwidth(replication=replication, reintegration=reintegration))
        with contextlib.suppress(OSError):  # it has told that; whoever changes something is refused meanwhile
            self._tracker.watch_clock()
        engine.flush_times()
        now = time.monotonic()
        if engine.awaiting and now - self._awaiting_since > self.settings.locktimeout:
            self._awaiting_since = now
            engine.await_failed("the secondary did not come back after the swap within locktimeout")
        if now >= self._next_checkpoint:
            self._next_checkpoint = now + self.settings.checkpoint
            if stream is not None and stream.state is State.PAIRED and not engine.disk_refused:
                try:
                    engine.checkpoint()
                except OSError as error:
                    log.warning("checkpoint failed: %s; what was changed stays recorded", text_of(error))

    # --- status ----------------------------------------------------------------------------------------------

    def configure(self, durable: bool, listen: str | None = None) -> None:
        """Dynamic attributes, and where this server listens now. Raises BoxError."""
        self.settings.durable = durable
        if listen is not None:
            self.listening.move(listen)

    def figures(self) -> Fields:
        """For monitoring, see safekit.disk.stats: what a primary has sent since it started."""
        engine = self.engine
        progress = self.listening.progress
        files, directories = self._tracker.counts() if self._tracker.active else (0, 0)
        operations, sent = self._totals.add(engine.stream)
        return {
            "operations": operations,
            "sent_bytes": sent,
            "latency": engine.latency.told(),
            "behind": files + directories,
            "held": engine.held,
            "reintegration_bytes": progress.get("bytes", 0),
            "reintegration_total": progress.get("bytes_total", 0),
        }

    def status(self) -> asked.Status:
        """Never waits."""
        engine = self.engine
        stream = engine.stream
        session = "none"
        if stream is not None:
            session = stream.state.value
        elif self._follower.session is not None:
            session = self._follower.session
        elif engine.awaiting:
            session = "awaited"
        files, directories = self._tracker.counts() if self._tracker.active else (0, 0)
        return asked.Status(
            role=engine.role.value if self.prepared else "none",
            degraded=self.degraded,
            peer=self._peer,
            address=self._follower.attempt.address,
            port=self._follower.attempt.port,
            session=session,
            attempt=self._follower.attempt.attempt,
            durable=self.settings.durable,
            session_id=stream.identity if stream is not None else self._follower.number,
            held=engine.held,
            pending=stream.pending if stream is not None else 0,
            revisit=len(engine.revisit.entries),
            dirty_files=files,
            dirty_dirs=directories,
            replication_kbs=self._bandwidth.shown[0],
            reintegration_kbs=self._bandwidth.shown[1],
            bytes_sent=stream.channel.bytes_sent if stream is not None else 0,
            frames_sent=stream.channel.sent if stream is not None else 0,
            applied=self._follower.applied,
            mounts=self._directories.served,
            journal_reliable=self._tracker.reliable,
            refused=engine.disks.refused,
            progress=self.listening.progress,
        )
