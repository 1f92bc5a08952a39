"""The replicated directories of a module on this server, as a whole: mounts, role, peer, durable state.

Everything here blocks; the bus side (control.py) calls it in threads, one operation at a time except `status`.
The order inside each operation is what makes it safe; see the comments.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from nfsbox.fs.directories import Directories
from nfsbox.pair.engine import Engine, Refused, Role
from nfsbox.pair.latency import Totals
from nfsbox.pair.secondary import Applier
from nfsbox.pair.server import Server
from nfsbox.pair.stream import State, Stream
from nfsbox.pair.tracking import Tracker
from nfsbox.place import BoxError, Place, roots_of, settings_of, text_of
from safekit.bus.asking import Ask, Done
from safekit.bus.requests import nfsadmin
from safekit.bus.requests import nfsbox as asked
from safekit.disk.files import reserve, sync_directory, write_atomic
from safekit.model.types import Rfs
from safekit.rfs import generations, journal
from safekit.rfs.changes import Mode
from safekit.rfs.wire import Kind, Op, WireError, WireRefused, connect

log = logging.getLogger("nfsbox")
UNNAMED: Final = "unnamed"
"""Code of an address that could not be looked up."""

Fields = dict[str, Any]

#: Bandwidth is an average over this many seconds (guide 13.6.4.7).
_AVERAGE: Final = 3


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
        self._recording = threading.Lock()  # one state after the other, whoever writes it
        self._notify = notify
        self._ask_pair = pair
        self._tracker = Tracker(place.directory, rfs.ruzone_blocksize)
        self.engine = Engine(self.roots, self._tracker, self.settings, notify)
        self._directories = Directories(self.engine, place.directory, place.module)
        self._server: Server | None = None
        self._listening = threading.Lock()  # whoever makes or ends the server
        self.unnamed = False
        """This server's own name on the replication network could not be looked up: nobody listens yet."""
        self._applier: Applier | None = None
        self._loaded = journal.Loaded()
        self._token: bytes | None = None  # of a hand-over, on both sides of it
        self._peer = ""
        self._address = ""
        self._port = 0
        self._attempt = ""
        self._session = 0
        self._started = False
        self._samples: deque[tuple[int, int]] = deque(maxlen=_AVERAGE + 1)
        self._shown = (0, 0)
        self._totals = Totals()
        self._next_checkpoint = 0.0
        self._awaiting_since = 0.0

    # --- durable state --------------------------------------------------------------------------------------

    @property
    def _state_file(self) -> Path:
        return self.place.directory / "state"

    def state(self) -> Fields | None:
        """What the state file says; None when there is none. A damaged one is a map without its fields, which nobody
        takes for a state."""
        try:
            return generations.to_fields(generations.decode(self._state_file.read_bytes()))
        except FileNotFoundError:
            return None
        except generations.StateError as error:
            return {"damaged": str(error)}

    def set_state(self, fields: Mapping[str, Any]) -> None:
        """Durable when it returns. Raises BoxError."""
        with self._recording:
            self._record(fields)

    def _record(self, fields: Mapping[str, Any]) -> None:
        try:
            state = generations.from_fields(fields)
            write_atomic(self._state_file, generations.encode(state))
        except generations.StateError as error:
            raise BoxError("state", str(error)) from None
        except OSError as error:
            raise BoxError("state", f"{self._state_file} cannot be written: {error.strerror}") from None
        if self.engine.role is Role.SECONDARY:
            if not state.consistent:
                self._begin_stream()
            elif self._applier is not None and self._applier.strict:
                self._forget_journal()
                if self._applier.compared:
                    self.engine.disks.proved(self._applier.refusals)

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
            with contextlib.suppress(OSError):  # no room to put by: it works as long as there is room
                reserve(self._state_file)
            self.degraded = degraded
            self._directories.check()
            try:
                self._loaded = journal.load(self.place.directory)
                self._directories.mount(degraded=degraded)
                if not degraded:
                    self._begin_to_listen()
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

    def _begin_to_listen(self) -> None:
        """A name of cluster.xml that cannot be looked up now stops nobody: at the boot of a server in a cloud its DNS
        may come later. Without the name no secondary finds this server either."""
        try:
            self._listen()
        except BoxError as error:
            if error.code != UNNAMED:
                raise
            self.unnamed = True
            log.warning("no secondary can come yet: %s; tried again until it can be looked up", error.text)

    def listen_when_named(self) -> None:
        """Try again what `unnamed` tells of. May wait for the DNS, and is called from one thread. Never raises."""
        place = self.place.listen
        if place is None:
            return
        try:
            socket.getaddrinfo(*place, type=socket.SOCK_STREAM)
        except OSError:
            return
        with self._listening:
            if not (self.unnamed and self.prepared):
                return
            try:
                self._listen()
            except BoxError as error:
                log.warning("no secondary can come yet: %s", error.text)
                return
            self.unnamed = False
        log.info("listens on %s port %d now", *place)

    def _listen(self) -> None:
        former = self._server
        if self.place.listen is None:
            raise BoxError("listen", "this server has no address on the network of the replication flow")
        try:
            self._server = Server(
                self.engine,
                self.place.module,
                self.place.keys,
                self.place.listen,
                on_open=self._on_open,
                state=self.state,
                pair=self._pair,
                token=lambda: self._token,
            )
        except socket.gaierror as error:
            raise BoxError(UNNAMED, f"{self.place.listen[0]}: {error.strerror}") from None
        except OSError as error:
            raise BoxError("listen", f"{error.strerror}: another program uses it, or the address is not here") from None
        if former is not None:
            self._server.succeed(former)
            former.close()

    def release(self) -> None:
        """Unmount, links restored, journal closed. Raises BoxError."""
        if not self.prepared:
            self._directories.clear_leftovers()
            return
        self._end_applier()
        was_primary = self.engine.role is Role.PRIMARY
        if self.engine.stream is not None and self.engine.stream.state is State.LOST:
            self._tracker.alone()
        self.engine.become_readonly(Role.STANDBY)
        try:
            self._directories.unmount()
            # Only now nothing can change any more.
            on_disk = self._on_disk()
            self._close_record(clean=was_primary and on_disk and self.engine.in_order)
        except OSError as error:
            raise BoxError("release", f"the replicated directories could not be released: {error.strerror}") from None
        finally:
            with self._listening:
                self.unnamed = False
                if self._server is not None:
                    self._server.close()
                    self._server = None
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
        if paired and self._token is None and (self._applier is None or self._applier.token is None):
            raise BoxError("not_paired", "there was no hand-over: start as primary without a peer")
        self._end_applier()
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
        self._end_applier()
        self._to_readonly(Role.SECONDARY, keep_journal=not paired)
        self._peer, self._address, self._port, self._attempt = ask.peer, ask.address, ask.port, ask.attempt
        hello: Fields = {"node": self.place.node, "paired": paired, "exchanges": True}
        if paired:
            hello["token"] = self._token or b""
        try:
            channel, answer = connect(
                (ask.address, ask.port), self.place.module, Kind.STREAM, self.place.keys(), hello, source=ask.source
            )
        except WireRefused as error:
            raise BoxError("refused", text_of(error)) from None
        except WireError as error:
            raise BoxError("connect", text_of(error)) from None
        # The state may say that this server's data is about to change: durable before the first operation.
        self._session = int(answer.get("session") or 0)
        self._applier = Applier(
            channel,
            self.roots,
            self.engine.disks,
            strict=paired,
            durable=bool(answer.get("durable")),
            place_holders=self.engine.place_holders,
            on_end=self._stream_ended,
            on_strict=lambda _: None,
        )
        self._started = paired
        if paired:
            self._save(ask.state)
            self._token = None
            self._forget_journal()
            self._applier.start()
            self._notify(nfsadmin.SessionOpen(ask.peer, True, "secondary"))
        elif ask.state is not None:
            # An interrupted reintegration left the mark already; the stream waits for the new verdict all the same.
            write_atomic(self._state_file, generations.encode(generations.from_fields(ask.state)))
        return asked.Connected(self._session, self._applier.durable, self.engine.disks.refused)

    def _begin_stream(self) -> None:
        """The mark `inconsistent` is durable: take the stream."""
        applier = self._applier
        if applier is None or self._started:
            return
        try:
            applier.channel.send(Op.START, timeout=10.0)
        except WireError as error:
            raise BoxError("connect", text_of(error)) from None
        self._started = True
        applier.start()
        self._notify(nfsadmin.SessionOpen(self._peer, False, "secondary"))

    def standby(self, *, state: Fields | None) -> None:
        """Read-only without a peer."""
        self._require()
        self._end_applier()
        self._to_readonly(Role.STANDBY, keep_journal=True)
        self._save(state)

    def _to_readonly(self, role: Role, *, keep_journal: bool) -> None:
        was_primary = self.engine.role is Role.PRIMARY
        self.engine.become_readonly(role)
        if was_primary:
            self._leave_pages()
        if was_primary and keep_journal:
            self._on_disk()
        self._close_record(clean=was_primary and self.engine.in_order)
        if keep_journal:
            self._loaded = journal.load(self.place.directory)

    def _leave_pages(self) -> None:
        for mount in self._directories.mounts:
            mount.leave_pages()

    def _on_disk(self) -> bool:
        """Put the data on disk. A disk that refuses keeps no server in a role that it is leaving: every file is
        compared the next time."""
        try:
            self.engine.sync_backing()
        except OSError as error:
            log.error(
                "this disk does not take what was written (%s): check it; every file is compared with the other server "
                "before this one is up to date again",
                text_of(error),
            )
            return False
        return True

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
        on_disk = self._on_disk()
        self._close_record(clean=on_disk and not self.engine.disk_refused)

    # --- the stream of a secondary --------------------------------------------------------------------------

    def _end_applier(self) -> None:
        applier, self._applier = self._applier, None
        if applier is None:
            return
        if self._started:
            if not applier.stop():
                self._applier = applier
                raise BoxError("busy", "the disk does not take what the peer had sent: check the disk of this server")
            if applier.token is not None:
                self._token = applier.token
            # The peer was told that its changes are in the memory here, and for what its application synced its own
            # disk stood. From now on nothing but this disk may be left; a takeover does not wait for it.
            threading.Thread(target=self._inherit, name="inherit", daemon=True).start()
        else:
            applier.channel.close()

    def _inherit(self) -> None:
        self._on_disk()

    def _stream_ended(self, reason: str, token: bytes | None) -> None:
        applier = self._applier
        if token is not None:
            self._token = token
            return  # handed over: the next role comes from heart
        if applier is not None:
            self._notify(nfsadmin.SessionLost(reason, self._peer, "secondary"))

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
            with self._recording:
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
            self._samples.clear()
            for mount in self._directories.mounts:
                mount.renew_pages()
            return
        stream = engine.stream
        self._samples.append((stream.replicated, stream.reintegrated) if stream is not None else (0, 0))
        first, last = self._samples[0], self._samples[-1]
        spread = max(1, len(self._samples) - 1)
        shown = tuple(max(0, (new - old) // spread // 1024) for old, new in zip(first, last, strict=True))
        if shown != self._shown:
            self._shown = (shown[0], shown[1])
            self._notify(nfsadmin.Bandwidth(replication=shown[0], reintegration=shown[1]))
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
        if listen is None or self.place.listen is None:
            return
        self.place = replace(self.place, listen=(listen, self.place.listen[1]))
        if self._server is not None and self._server.listens_elsewhere(listen):
            self._listen()

    def figures(self) -> Fields:
        """For monitoring, see safekit.disk.stats: what a primary has sent since it started."""
        engine = self.engine
        progress = self._server.progress if self._server is not None else {}
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
        elif self._applier is not None:
            session = self._applier.session
        elif engine.awaiting:
            session = "awaited"
        files, directories = self._tracker.counts() if self._tracker.active else (0, 0)
        return asked.Status(
            role=engine.role.value if self.prepared else "none",
            degraded=self.degraded,
            peer=self._peer,
            address=self._address,
            port=self._port,
            session=session,
            attempt=self._attempt,
            durable=self.settings.durable,
            session_id=stream.identity if stream is not None else self._session,
            held=engine.held,
            pending=stream.pending if stream is not None else 0,
            revisit=len(engine.revisit.entries),
            dirty_files=files,
            dirty_dirs=directories,
            replication_kbs=self._shown[0],
            reintegration_kbs=self._shown[1],
            bytes_sent=stream.channel.bytes_sent if stream is not None else 0,
            frames_sent=stream.channel.sent if stream is not None else 0,
            applied=self._applier.applied if self._applier is not None else 0,
            mounts=self._directories.served,
            journal_reliable=self._tracker.reliable,
            refused=engine.disks.refused,
            progress=self._server.progress if self._server is not None else {},
        )
