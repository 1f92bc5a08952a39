"""The ordered stream of operations to the secondary, as the primary sees it (R1, R3, R8).

A stream is RESYNC until the secondary is equal, then PAIRED. Operations are sent in the order in which they are
applied here (the engine's order lock), and the thread that made one waits for its acknowledgement. Nobody reads
acknowledgements on behalf of others in a thread of its own: whoever waits reads, so that with one request
outstanding it blocks in recv itself.

A RESYNC stream that breaks is dropped; nothing was promised. A PAIRED one that breaks holds the operations that
are not acknowledged, until the engine is told what became of the peer.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

from safekit.rfs.wire import HEADER, HEADER_SIZE, Channel, Flag, Op, WireError, WireTimeout

if TYPE_CHECKING:
    from nfsbox.pair.files import File

_ACK: Final = Flag.ACK
_WRITE: Final = int(Op.WRITE)
_CHECKPOINT: Final = int(Op.CHECKPOINT)
_MORE: Final = int(socket.MSG_MORE)
_ACKNOWLEDGE: Final = int(Op.ACK)


#: Seconds that a thread waits for the peer before others are told of it.
PATIENCE: Final = 0.1


class State(Enum):
    """Of a stream."""

    RESYNC = "resync"
    PAIRED = "paired"
    LOST = "lost"


class Stream:
    """One session with one secondary. `on_lost(stream, was, reason)` is called once, from any thread; `on_slow()`
    time and again by a thread that the peer keeps waiting."""

    def __init__(
        self,
        channel: Channel,
        identity: int,
        peer: str,
        *,
        paired: bool,
        exchanges: bool = False,
        sendtimeout: float,
        locktimeout: float,
        on_lost: Callable[[Stream, State, str], None],
        on_slow: Callable[[], None] = lambda: None,
        visible: Callable[[File], bytes | None] = lambda file: file.path,
    ) -> None:
        self.channel = channel
        channel.on_slow = self._on_slow = on_slow
        channel.wait_at_most(PATIENCE)
        self.identity = identity
        self.peer = peer
        self._visible = visible
        self.exchanges = exchanges  # whether the secondary knows EXCHANGE; one of the release before does not
        self.state = State.PAIRED if paired else State.RESYNC
        self.strict = paired
        self.reason = ""
        self.was = self.state
        self._sendtimeout = sendtimeout
        self._locktimeout = locktimeout
        self._on_lost = on_lost
        self._acked = 0
        self._errors: dict[int, int] = {}
        self._fresh: set[int] = set()  # acknowledged frames that made new content necessary
        self._late: dict[int, int] = {}
        self._next_fid = 0
        self.bound: set[tuple[int, int]] = set()  # files that were written while not strict
        self._reading = threading.Lock()  # whoever holds it is in recv
        self._failing = threading.Lock()
        self._decided = threading.Event()
        self._kept = False
        self._turn = threading.Condition()
        self._waiters = 0
        self.replicated = 0  # bytes of application data
        self.reintegrated = 0

    # --- sending; the caller holds the order lock ------------------------------------------------------------

    def send(
        self,
        op: int,
        root: int,
        fid: int = 0,
        a: int = 0,
        b: int = 0,
        body: bytes = b"",
        *,
        extra: int = 0,
        flags: int = _ACK,
    ) -> int:
        """Send an operation; the number to `wait` for. Never raises for a broken stream: `wait` tells.
        One that wants no acknowledgement may travel with the next."""
        if self.state is not State.LOST:
            try:
                return self.channel.send_plain(
                    HEADER.pack(op, flags, root, extra, fid, a, b) + body,
                    self._sendtimeout,
                    0 if flags & _ACK or op == _CHECKPOINT else _MORE,
                )
            except WireError as error:
                self.fail(_sending(error))
        return self.channel.sent + 1

    def send_write(self, root: int, fid: int, offset: int, frame: memoryview, flags: int = _ACK) -> int:
        """Send a WRITE whose data stands in `frame` behind room for the header."""
        if self.state is not State.LOST:
            HEADER.pack_into(frame, 0, _WRITE, flags, root, 0, fid, offset, 0)
            try:
                return self.channel.send_plain(frame, self._sendtimeout)
            except WireError as error:
                self.fail(_sending(error))
        return self.channel.sent + 1

    def new_fid(self) -> int:
        """A number for a file, used once in this session."""
        self._next_fid += 1
        return self._next_fid

    def bind(self, file: File) -> bool:
        """Make sure that the secondary knows the file by its fid. False for one that has no name there: what is
        written to it nobody will ever see."""
        if file.session != self.identity:
            path = self._visible(file)
            if path is None:
                return False
            file.fid = self.new_fid()
            file.session = self.identity
            self.send(Op.OPEN, file.root, file.fid, body=path, flags=0)
            if not self.strict:
                self.bound.add((file.root, file.inode))
        return True

    def forget(self, file: File) -> None:
        """The secondary need not know the file any more."""
        if file.session == self.identity:
            self.send(Op.CLOSE, file.root, file.fid, flags=0)
            file.session = 0

    def rebind(self, file: File, path: bytes) -> None:
        """The secondary has another inode at `path`, a name of the file, now."""
        if file.session == self.identity:
            self.send(Op.OPEN, file.root, file.fid, body=path, flags=0)

    # --- acknowledgements ----------------------------------------------------------------------------------

    def wait(self, number: int, timeout: float | None = None) -> int:
        """Wait until frame `number` is acknowledged; the errno of the secondary, 0 when all is well, ENOTCONN when
        the stream is lost."""
        started = time.monotonic()
        limit = self._locktimeout if timeout is None else timeout
        while self._acked < number:
            if self.state is State.LOST:
                return errno.ENOTCONN
            if self._reading.acquire(False):
                try:
                    if self._acked < number:
                        self._read()
                finally:
                    self._reading.release()
                if self._waiters:
                    with self._turn:
                        self._turn.notify_all()
            else:
                with self._turn:
                    self._waiters += 1
                    if self._acked < number and self._reading.locked():
                        self._turn.wait(0.1)
                    self._waiters -= 1
            if time.monotonic() - started > limit and self._acked < number:
                self.fail(f"a request was not acknowledged within {limit:g} seconds (locktimeout)")
        return self._errors.pop(number, 0) if self._errors else 0

    def wait_late(self, number: int, timeout: float) -> int:
        """Wait for a frame that the secondary works on beside the stream (CHECKPOINT)."""
        end = time.monotonic() + timeout
        while number not in self._late:
            if self.state is State.LOST:
                return errno.ENOTCONN
            if time.monotonic() > end:
                self.fail(f"the secondary did not write its data within {timeout:g} seconds")
            if self._reading.acquire(False):
                try:
                    self._read()
                finally:
                    self._reading.release()
                if self._waiters:
                    with self._turn:
                        self._turn.notify_all()
            else:
                with self._turn:
                    self._waiters += 1
                    if number not in self._late and self._reading.locked():
                        self._turn.wait(0.1)
                    self._waiters -= 1
        return self._late.pop(number)

    def was_fresh(self, number: int) -> bool:
        """Whether the secondary had to make the entry of frame `number` anew."""
        if number in self._fresh:
            self._fresh.discard(number)
            return True
        return False

    def _read(self) -> None:
        try:
            frame = self.channel.receive()
        except WireError as error:
            self.fail(error.strerror or str(error))
            return
        if frame is None:
            self._on_slow()
            return
        op, flags, _, code, _, number, fresh = HEADER.unpack_from(frame)
        if op != _ACKNOWLEDGE or number > self.channel.sent:
            self.fail(f"unexpected frame {op} from the secondary")
            return
        if flags:  # LATE is the only one
            if code and self.strict:
                self.fail(f"the secondary could not apply operation {number}: {_explain(frame, code)}")
            self._late[number] = code
            return
        if code:
            if self.strict:
                self.fail(f"the secondary could not apply operation {number}: {_explain(frame, code)}")
                return
            self._errors[number] = code
        if fresh:
            self._fresh.add(number)
        self._acked = number

    @property
    def lost(self) -> bool:
        """Whether it has ended; it may at any moment."""
        return self.state is State.LOST

    @property
    def pending(self) -> int:
        """Frames not known to be acknowledged (frames that want none count until the next that does)."""
        return max(0, self.channel.sent - self._acked)

    # --- the end -------------------------------------------------------------------------------------------

    def pair(self) -> bool:
        """The secondary is equal: from now on its loss is decided elsewhere. False when it is lost already."""
        with self._failing:
            if self.state is State.LOST:
                return False
            self.state = self.was = State.PAIRED
            return True

    def fail(self, reason: str) -> None:
        """Break the stream; once."""
        with self._failing:
            if self.state is State.LOST:
                return
            self.was, self.state, self.reason = self.state, State.LOST, reason
        self.channel.shutdown()
        with self._turn:
            self._turn.notify_all()
        self._on_lost(self, self.was, reason)

    def close(self) -> None:
        """Orderly end: no `on_lost`."""
        with self._failing:
            if self.state is not State.LOST:
                self.was, self.state, self.reason = self.state, State.LOST, "closed"
        self.channel.shutdown()
        with self._turn:
            self._turn.notify_all()

    # --- what becomes of changes that the lost secondary did not acknowledge --------------------------------

    def decide(self, *, kept: bool) -> None:
        """Once: they stand (this server goes on without its peer, and has recorded that), or nothing was promised."""
        if not self._decided.is_set():
            self._kept = kept
            self._decided.set()

    def fate(self) -> bool:
        """Wait for the decision. It belongs to the stream: whatever begins afterwards changes nothing about it."""
        self._decided.wait()
        return self._kept


def _sending(error: WireError) -> str:
    if isinstance(error, WireTimeout):
        return f"{error.strerror} (sendtimeout)"
    return error.strerror or str(error)


def _explain(frame: bytes, code: int) -> str:
    import os

    text = frame[HEADER_SIZE:].decode("utf-8", "replace")
    return f"{os.strerror(code)} {text}".strip()
