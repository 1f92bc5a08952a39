"""The secondary's side of the stream: operations are applied in the order in which they arrive.

With async="second" a WRITE is acknowledged when it is here, before it is applied; everything else, and everything
while the data is being resynchronised, after. With async="none" every operation is on disk before its
acknowledgement; one commit serves all that have arrived. Strict: an operation that fails means that the two servers
differ; the stream ends, and this server must resynchronise. Lenient (during a resynchronisation): what is in the way
is removed, what is missing is reported, and the primary has it compared again.
"""

from __future__ import annotations

import errno
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final

from nfsbox.pair import apply
from nfsbox.pair.commit import Disks, Due
from nfsbox.pair.engine import Root
from nfsbox.pair.hidden import PlaceHolders
from safekit.disk import steps
from safekit.rfs.system import PIECE
from safekit.rfs.wire import HEADER, HEADER_SIZE, Channel, Flag, Op, WireError, decode_map

_WRITE: Final = int(Op.WRITE)
#: Operations, and bytes of them, that one commit serves at most: those who wait for the first must not wait for ever.
GROUP: Final = 256
GROUP_BYTES: Final = 16 << 20


class Applier:
    """Serves one stream in a thread of its own. `on_end(reason, handed_over)` is called once at its end, `on_strict`
    when the resynchronisation is complete here (its reply must be durable)."""

    def __init__(
        self,
        channel: Channel,
        roots: Sequence[Root],
        disks: Disks,
        *,
        strict: bool,
        durable: bool,
        place_holders: PlaceHolders | None = None,
        on_end: Callable[[str, bytes | None], None],
        on_strict: Callable[[dict[str, Any]], None],
    ) -> None:
        self.channel = channel
        self.roots = roots
        self._disks = disks
        self.strict = strict
        self.compared = not strict
        """It began with a comparison of both servers."""
        self.refusals = disks.refusals
        """Of the disk, when it began."""
        self.durable = durable
        self.token: bytes | None = None
        self.applied = 0
        self._ended = False
        self._on_end = on_end
        self._on_strict = on_strict
        self._sending = threading.Lock()
        self._files = apply.OpenFiles()
        self._trees = apply.Trees(roots, place_holders)
        self._due = Due(disks)
        self._unanswered = 0  # the last operation that is applied and wants an answer, but is not on disk yet
        self._group = self._group_bytes = 0
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)

    @property
    def session(self) -> str:
        """resync, paired (strict), handed_over (the primary gave its role away), lost."""
        if self.token is not None:
            return "handed_over"
        if self._ended:
            return "lost"
        return "paired" if self.strict else "resync"

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 100.0) -> bool:
        """Cut the stream and wait until what was acknowledged is applied; False when the disk does not let it."""
        self.channel.shutdown()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        reason = "closed"
        try:
            self._serve()
        except WireError as error:
            reason = error.strerror or str(error)
        except Exception:
            reason = f"error inside nfsbox: {traceback.format_exc(limit=3)}"
        finally:
            self._due.forget()
            self._files.close_all()
            self.channel.close()
            self._ended = True
            self._on_end(reason, self.token)

    def _acknowledge(
        self, number: int, code: int = 0, *, fresh: bool = False, late: bool = False, text: str = ""
    ) -> None:
        with self._sending:
            self.channel.send(
                Op.ACK,
                a=number,
                b=int(fresh),
                extra=code,
                flags=Flag.LATE if late else 0,
                body=text.encode(),
                timeout=60.0,
            )

    def _serve(self) -> None:
        channel, files = self.channel, self._files
        unpack = HEADER.unpack_from
        receive, send_ack, sending = channel.receive, channel.send_ack, self._sending
        while True:
            if self._group and (self._group >= GROUP or self._group_bytes >= GROUP_BYTES or not channel.arrived()):
                self._commit()
            frame = receive()
            if frame is None:
                if self._group:
                    self._commit()  # the rest of a frame does not come
                continue
            number = channel.received
            if frame[0] == _WRITE:
                _, flags, _, _, fid, offset, _ = unpack(frame)
                descriptor = files.get(fid, -errno.EBADF)
                if self.strict and not self.durable and descriptor >= 0:
                    if flags & 1:
                        with sending:
                            send_ack(number)
                    data = memoryview(frame)[HEADER_SIZE:]
                    try:
                        while data:
                            done = steps.apply_write(descriptor, data[:PIECE], offset)
                            data = data[done:]
                            offset += done
                    except OSError as error:
                        self._diverged(number, error, late=True)
                    continue
            self._one(number, frame)
            if self._due or self._unanswered:
                self._group += 1
                self._group_bytes += len(frame)

    def _commit(self) -> None:
        """Put what was applied on disk, then acknowledge it; the last acknowledgement is that of all before it."""
        number, self._unanswered, self._group, self._group_bytes = self._unanswered, 0, 0, 0
        try:
            self._due.commit()
        except OSError as error:
            self._diverged(number or self.channel.received, error, late=not number, text="put on disk")
        if number:
            with self._sending:
                self.channel.send_ack(number)

    def _one(self, number: int, frame: bytes) -> None:
        code, fresh, text = 0, False, ""
        op, flags = frame[0], frame[1]
        if op == Op.CHECKPOINT:
            threading.Thread(target=self._checkpoint, args=(number,), name="checkpoint", daemon=True).start()
            return
        try:
            fresh = self._apply(op, frame)
            if self._due and not self.strict:
                self._due.commit()  # what fails is told of this operation, not of a group
        except OSError as error:
            code = error.errno or errno.EIO
            text = f"{Op(op).name if op in set(Op) else op} {apply.describe(frame)}"
            if self.strict:
                self._diverged(number, error, text=text)
            self._due.forget()
        if flags & Flag.ACK:
            if self.strict and self.durable:
                self._unanswered = number
                return
            if not code and (self.strict or not fresh):
                with self._sending:
                    self.channel.send_ack(number)
                return
            self._acknowledge(number, code, fresh=fresh, text=text)

    def _diverged(self, number: int, error: OSError, *, late: bool = False, text: str = "") -> None:
        code = error.errno or errno.EIO
        self._acknowledge(number, code, late=late, text=text)
        what = f"operation {number} {text}".rstrip()
        raise WireError(code, f"this server could not apply {what} ({error.strerror}): it must resynchronise")

    def _apply(self, op: int, frame: bytes) -> bool:
        if op == Op.STRICT:
            fields = decode_map(memoryview(frame)[HEADER_SIZE:])
            self._sync()
            if self._disks.refusals != self.refusals:
                # A thread beside the stream was told, so that this sync was not; what was found equal may be in memory
                # only.
                raise OSError(errno.EIO, "this disk has refused data meanwhile: everything is compared again")
            self._on_strict(fields)
            self.strict = True
            return False
        if op == Op.HANDOVER:
            self._sync()
            self.token = bytes(memoryview(frame)[HEADER_SIZE:])
            return False
        if op == Op.PING:
            return False
        self.applied += 1
        # What is pushed is nobody's promise yet: STRICT, at the end of it all, puts everything on disk.
        due = self._due if self.durable and (self.strict or not frame[1] & Flag.RESYNC) else None
        return apply.operation(self._trees, self._files, frame, strict=self.strict, due=due)

    def _sync(self) -> None:
        self._disks.sync()

    def _checkpoint(self, number: int) -> None:
        code = 0
        try:
            self._sync()
        except OSError as error:
            code = error.errno or errno.EIO
        try:
            self._acknowledge(number, code, late=True)
        except WireError:
            self.channel.shutdown()  # the serving thread reports the end
