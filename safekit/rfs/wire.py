"""The wire of the replicated file system: TCP port 5600+4(id-1) of the replication lan (guide 10.2.3.2).

The nfsbox that is primary listens; the secondary's nfsbox connects for the stream of operations, and reintegre
on the secondary connects for the resynchronisation service. A connection starts with a preamble in clear

    magic 4 | protocol version 2 | kind 1 | offer 1 | random 16

from each side. The client says the oldest version that it speaks and offers the newest (0, as version 1 does: no
newer one); the server answers with the version that is spoken from there on and the same kind, or with a refusal
code as its offer. Both repeat in their first sealed frame what they speak, so that nobody on the way can talk them
down. What follows are sealed frames (AES-256-GCM under keys of this connection, a counter as nonce: a frame that
is lost, repeated, moved or altered ends the connection)

    length 4 (of what follows) | sealed( header 32 | body )

The header is `op 1 | flags 1 | root 2 | extra 4 | fid 8 | a 8 | b 8`, little-endian. Frames of one direction are
numbered from 1 in the order sent; an acknowledgement names the number in `a` and an errno in `extra`.

Paths are bytes relative to a replicated directory, without a slash at either end; the directory itself is b"".
`root` is the index of the directory in the configuration.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import stat
import struct
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Final

import msgpack

from safekit.wire import protocol
from safekit.wire.seal import STREAM_HELLO_SIZE, SealError, StreamCipher, stream_ciphers, stream_hello

MAGIC: Final = b"SKRF"
PREAMBLE: Final = struct.Struct("<4sHBB16s")
LENGTH: Final = struct.Struct("<I")
HEADER: Final = struct.Struct("<BBHIQQQ")
HEADER_SIZE: Final = HEADER.size
#: Longest data of one WRITE: a larger one is split by the sender.
MAX_DATA: Final = 1 << 20
#: Largest file that a resynchronisation sends whole in one frame.
SMALL: Final = 64 << 10
#: Longest frame that either side accepts.
MAX_FRAME: Final = (8 << 20) + (64 << 10)
#: Longest frame accepted before the peer has proved that it holds the key.
MAX_FIRST_FRAME: Final = 64 << 10
#: How long a blocking call may last before the caller looks at its deadlines again, seconds.
SLICE: Final = 0.5

#: attributes of SETATTR, PSETATTR, CREATE, MKDIR, MKNOD, SYMLINK, ENTRY
ATTR: Final = struct.Struct("<IIIIqqQQ")  # mask, mode, uid, gid, atime ns, mtime ns, rdev, size


class Kind(IntEnum):
    """What a connection is for."""

    STREAM = 1
    RESYNC = 2
    BULK = 3


class Refusal(IntEnum):
    """Last byte of the server's preamble; 0 means accepted so far."""

    NONE = 0
    VERSION = 1
    ROLE = 2
    BUSY = 3


class Op(IntEnum):
    """Operations. Those up to FSYNC name the file by fid, those from CREATE on by path."""

    OPEN = 1  # body path: bind fid to the file at path
    WRITE = 2  # a offset; body data
    TRUNCATE = 3  # a size
    FALLOCATE = 4  # extra mode, a offset, b length
    SETATTR = 5  # body ATTR
    SETXATTR = 6  # extra length of the name, a flags; body name + value
    REMOVEXATTR = 7  # body name
    CLOSE = 8  # forget fid; a mtime in ns, 0: leave it
    FSYNC = 9  # a 1: data only
    CREATE = 20  # body ATTR + path: make a regular file, bind fid to it (fid 0: do not bind); b mode at creation
    MKDIR = 21  # body ATTR + path
    MKNOD = 22  # body ATTR + path
    SYMLINK = 23  # extra length of path; body ATTR + path + target
    LINK = 24  # extra length of the existing path; body existing + new
    UNLINK = 25
    RMDIR = 26
    RENAME = 27  # extra length of the old path; body old + new
    PSETATTR = 28  # body ATTR + path
    PTRUNCATE = 29  # a size
    PSETXATTR = 30  # extra length of path, a flags, b length of the name; body path + name + value
    PREMOVEXATTR = 31  # extra length of path; body path + name
    FSYNCDIR = 32
    EXCHANGE = 33  # extra length of the one path; body one + other: only to a secondary that said that it can
    ENTRY = 40  # resynchronisation: extra length of path, body ATTR + path + msgpack {target, xattrs, link}
    FILE = 42  # resynchronisation: as ENTRY, and b bytes of content behind: a regular file whole
    REMOVE = 41  # resynchronisation: remove path, whatever it is, with everything below
    PING = 60
    CHECKPOINT = 61  # put everything received so far on disk, then acknowledge
    STRICT = 62  # end of a resynchronisation: body msgpack; from here on any failure is a divergence
    HANDOVER = 63  # the primary is read-only: body token of 16 bytes for the reversed connection
    START = 64  # secondary to primary, once: it takes the stream from here on
    ACK = 80  # a: number of the frame; extra: errno; b 1: the entry was made anew; body: text of an error
    HELLO = 81  # body msgpack: first frame of the client
    WELCOME = 82  # body msgpack: first frame of the server
    REQUEST = 83  # resynchronisation service, body msgpack
    REPLY = 84


class Flag:
    """Flags of a frame (plain numbers: an IntFlag costs a microsecond an operation)."""

    NONE: Final = 0
    ACK: Final = 1  # acknowledge this frame
    RESYNC: Final = 2  # sent for a resynchronisation (counted apart)
    LATE: Final = 4  # of an ACK: for this frame only, not for those before it


_SECOND: Final = 1_000_000_000
_NEAR: Final = 1 << 63


class Set:
    """Mask of ATTR: which attributes are meant."""

    MODE: Final = 1
    UID: Final = 2
    GID: Final = 4
    ATIME: Final = 8
    MTIME: Final = 16
    SIZE: Final = 32
    #: In the place of ATIME and MTIME: both times are seconds, what remains of them in ns stands in `rdev`, of a device
    #: in `size`. For moments that 64 bits of ns do not reach (before 1677 or after 2262).
    FAR_ATIME: Final = 64
    FAR_MTIME: Final = 128


class WireError(OSError):
    """The connection cannot be used any more; errno and text say why."""


class WireClosed(WireError):
    """The peer closed the connection, or it was cut here."""


class WireRefused(WireError):
    """The server refused: `refusal`."""

    def __init__(self, refusal: Refusal, text: str) -> None:
        super().__init__(errno.ECONNREFUSED, text)
        self.refusal = refusal


class WireTimeout(WireError):
    """Nothing moved within the time allowed."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.ETIMEDOUT, text)


def pack_attr(
    mask: int,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    atime: int = 0,
    mtime: int = 0,
    rdev: int = 0,
    size: int = 0,
) -> bytes:
    """Attributes as they travel; times in nanoseconds since 1970."""
    if not -_NEAR <= atime < _NEAR or not -_NEAR <= mtime < _NEAR:
        for near, far in ((Set.ATIME, Set.FAR_ATIME), (Set.MTIME, Set.FAR_MTIME)):
            mask = mask & ~near | far if mask & near else mask
        (atime, rest), (mtime, more) = (_far(atime), _far(mtime))
        rest = rest << 32 | more
        if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
            size = rest
        else:
            rdev = rest
    return ATTR.pack(mask, mode, uid, gid, atime, mtime, rdev, size)


def unpack_attr(body: bytes | memoryview) -> tuple[int, ...]:
    """(mask, mode, uid, gid, atime ns, mtime ns, rdev, size) as `pack_attr` was given them."""
    attr = ATTR.unpack_from(body)
    mask = attr[0]
    if not mask & (Set.FAR_ATIME | Set.FAR_MTIME):
        return attr
    for near, far in ((Set.ATIME, Set.FAR_ATIME), (Set.MTIME, Set.FAR_MTIME)):
        mask = mask & ~far | near if mask & far else mask
    device = stat.S_ISBLK(attr[1]) or stat.S_ISCHR(attr[1])
    rest = attr[7] if device else attr[6]
    atime, mtime = attr[4] * _SECOND + (rest >> 32), attr[5] * _SECOND + (rest & 0xFFFFFFFF)
    return (mask, *attr[1:4], atime, mtime, attr[6] if device else 0, 0 if device else attr[7])


def _far(moment: int) -> tuple[int, int]:
    """Seconds and ns."""
    seconds, rest = divmod(moment, _SECOND)
    return max(-_NEAR, min(seconds, _NEAR - 1)), rest


def pack_time(moment: int) -> int | list[int]:
    """A time in ns for msgpack, which knows 64 bits: seconds and ns where it needs more."""
    return moment if -_NEAR <= moment < _NEAR else list(_far(moment))


def unpack_time(packed: int | list[int]) -> int:
    """As `pack_time` was given it. Raises ValueError, TypeError for anything else."""
    if isinstance(packed, int):
        return packed
    seconds, rest = packed
    return int(seconds) * _SECOND + int(rest)


def tune(sock: socket.socket) -> None:
    """Options of every connection of ours: no delay, bounded buffers, blocking calls in slices of SLICE seconds,
    so that a blocked thread notices a decision that was taken meanwhile."""
    sock.setblocking(True)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _slices(sock, SLICE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _slices(sock: socket.socket, seconds: float) -> None:
    slice_ = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, slice_)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, slice_)


#: Frames up to this size are joined with their length: cheaper than a vector.
_SMALL: Final = 8192
_ACK: Final = int(Op.ACK)
_ACK_SIZE: Final = 4 + HEADER_SIZE + 16
_ACK_LENGTH: Final = LENGTH.pack(HEADER_SIZE + 16)
_unpack_length = LENGTH.unpack_from
_pack_length = LENGTH.pack


class Channel:
    """One sealed connection, blocking. Sending and receiving may be done by different threads, but each by one
    thread at a time (callers lock). After any WireError the channel is dead."""

    def __init__(self, sock: socket.socket, sender: StreamCipher, receiver: StreamCipher) -> None:
        self.sock = sock
        self.fileno = sock.fileno()
        self._recv_into = sock.recv_into
        self._seal = sender.seal
        self._open = receiver.open
        self.sent = 0  # frames: the number of the last frame sent
        self.received = 0
        self.bytes_sent = 0
        self.limit = MAX_FIRST_FRAME
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._buffer = bytearray(256 << 10)
        self._view = memoryview(self._buffer)
        self._low = 0
        self._high = 0
        self._unsent: tuple[memoryview, ...] = ()
        self.closed = False
        self.on_slow: Callable[[], None] = lambda: None  # called while a send makes no progress

    def send(
        self,
        op: int,
        root: int = 0,
        fid: int = 0,
        a: int = 0,
        b: int = 0,
        body: bytes = b"",
        *,
        extra: int = 0,
        flags: int = 0,
        timeout: float | None = None,
    ) -> int:
        """Send one frame; its number. Raises WireError; WireTimeout after `timeout` seconds without progress."""
        return self.send_plain(HEADER.pack(op, flags, root, extra, fid, a, b) + body, timeout)

    def send_plain(self, frame: bytes | bytearray | memoryview, timeout: float | None = None, flags: int = 0) -> int:
        """Send a frame whose header the caller has packed. Returns its number. With MSG_MORE in `flags` it may wait
        up to 0.2 s (tcp(7)) for a frame that follows, and saves the peer a wake-up."""
        length = _pack_length(len(frame) + 16)
        sealed = self._seal(frame, length)
        total = len(sealed) + 4
        try:
            if total < _SMALL:
                done = self.sock.send(length + sealed, flags)
            else:
                done = self.sock.sendmsg((length, sealed), (), flags)
        except (BlockingIOError, InterruptedError):
            done = 0
        except OSError as error:
            raise WireClosed(error.errno or errno.EPIPE, f"connection lost while sending: {error}") from None
        if done < total:
            self._push(memoryview(length + sealed)[done:], timeout)
        self.sent += 1
        self.bytes_sent += total
        return self.sent

    def _push(self, rest: memoryview, timeout: float | None) -> None:
        last = time.monotonic()
        while rest:
            try:
                done = self.sock.send(rest)
            except (BlockingIOError, InterruptedError):
                if timeout is not None and time.monotonic() - last > timeout:
                    raise WireTimeout(f"nothing could be sent for {timeout:g} seconds") from None
                if self.closed:
                    raise WireClosed(errno.EPIPE, "connection closed here") from None
                self.on_slow()
                continue
            except OSError as error:
                raise WireClosed(error.errno or errno.EPIPE, f"connection lost while sending: {error}") from None
            rest = rest[done:]
            last = time.monotonic()

    def send_ack(self, number: int) -> None:
        """Acknowledge frame `number`: what every replicated write pays for. Raises WireError."""
        sealed = self._seal(HEADER.pack(_ACK, 0, 0, 0, 0, number, 0), _ACK_LENGTH)
        try:
            done = self.sock.send(_ACK_LENGTH + sealed)
        except (BlockingIOError, InterruptedError):
            done = 0
        except OSError as error:
            raise WireClosed(error.errno or errno.EPIPE, f"connection lost while sending: {error}") from None
        if done < _ACK_SIZE:
            self._push(memoryview(_ACK_LENGTH + sealed)[done:], 60.0)
        self.sent += 1

    def receive(self) -> bytes | None:
        """The next frame, header first; None when nothing came for a slice (SLICE). Raises WireError."""
        low, high = self._low, self._high
        if low == high:
            low = high = 0
        while True:
            have = high - low
            if have >= 4:
                (size,) = _unpack_length(self._buffer, low)
                if have >= size + 4:
                    break
                if size < HEADER_SIZE + 16 or size > self.limit:
                    raise WireError(errno.EPROTO, f"frame of {size} bytes refused")
                if low + size + 4 > len(self._buffer):
                    self._make_room(low, high, size + 4)
                    low, high = 0, have
            elif have and low + 4 > len(self._buffer):
                self._make_room(low, high, 4)
                low, high = 0, have
            self._low, self._high = low, high
            try:
                got = self._recv_into(self._view[high:])
            except (BlockingIOError, InterruptedError):
                if self.closed:
                    raise WireClosed(errno.EPIPE, "connection closed here") from None
                return None
            except OSError as error:
                raise WireClosed(error.errno or errno.EPIPE, f"connection lost: {error}") from None
            if not got:
                raise WireClosed(errno.EPIPE, "connection closed by the peer")
            high += got
        if size < HEADER_SIZE + 16 or size > self.limit:
            raise WireError(errno.EPROTO, f"frame of {size} bytes refused")
        end = low + 4 + size
        try:
            frame = self._open(self._view[low + 4 : end], _pack_length(size))
        except SealError as error:
            raise WireError(errno.EPROTO, error.detail) from None
        self._low, self._high = end, high
        self.received += 1
        return frame

    def _make_room(self, low: int, high: int, need: int) -> None:
        if need > len(self._buffer):
            grown = bytearray(max(need, min(2 * len(self._buffer), MAX_FRAME + 4)))
            grown[: high - low] = self._buffer[low:high]
            self._buffer = grown
        else:
            self._buffer[: high - low] = bytes(self._buffer[low:high])
        self._view = memoryview(self._buffer)

    def receive_within(self, seconds: float) -> bytes:
        """The next frame. Raises WireTimeout when it does not come in time."""
        end = time.monotonic() + seconds
        while True:
            frame = self.receive()
            if frame is not None:
                return frame
            if time.monotonic() >= end:
                raise WireTimeout(f"no answer of the peer within {seconds:g} seconds")

    def wait_at_most(self, seconds: float) -> None:
        """Blocking calls in other slices than SLICE."""
        _slices(self.sock, seconds)

    def arrived(self) -> bool:
        """Whether a part of a frame is here: in memory, or in the socket."""
        return self._high > self._low or bool(self._poll.poll(0))

    def shutdown(self) -> None:
        """Cut the connection; threads blocked in it return. Safe from any thread, more than once."""
        self.closed = True
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the socket was not connected any more, which is what is wanted

    def close(self) -> None:
        """Cut and free. No thread may be inside the channel any more."""
        self.shutdown()
        self.sock.close()

    def __del__(self) -> None:
        # A stream is only cut when it ends, because threads may be inside; the last of them leaves here.
        self.sock.close()


def _context(module: str, kind: Kind) -> str:
    return f"rfs/{module}/{kind.name.lower()}"


def _read_exactly(sock: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        if time.monotonic() > deadline:
            raise WireTimeout("the peer does not answer the connection")
        try:
            got = sock.recv(size - len(data))
        except (BlockingIOError, InterruptedError):
            continue
        except OSError as error:
            raise WireClosed(error.errno or errno.EPIPE, f"connection lost: {error}") from None
        if not got:
            raise WireClosed(errno.EPIPE, "connection closed by the peer")
        data += got
    return data


_REFUSED = {
    Refusal.VERSION: "the servers are more than one release apart: upgrade the older one",
    Refusal.ROLE: "the peer is not primary",
    Refusal.BUSY: "the peer serves another secondary",
}


def connect(
    address: tuple[str, int],
    module: str,
    kind: Kind,
    keys: Sequence[bytes],
    hello: dict[str, Any],
    *,
    source: str | None = None,
    timeout: float = 10.0,
) -> tuple[Channel, dict[str, Any]]:
    """Open a connection; the channel and the server's WELCOME. Raises WireError, WireRefused.

    `keys`: the likely one first. A server that was not told of a new key yet closes on it, and is asked with the
    key before.
    """
    for key in keys[:-1]:
        with contextlib.suppress(WireClosed):
            return _connect(address, module, kind, key, hello, source, timeout)
    return _connect(address, module, kind, keys[-1], hello, source, timeout)


def _connect(
    address: tuple[str, int],
    module: str,
    kind: Kind,
    key: bytes,
    hello: dict[str, Any],
    source: str | None,
    timeout: float,
) -> tuple[Channel, dict[str, Any]]:
    try:
        sock = socket.create_connection(address, timeout, (source, 0) if source else None)
    except OSError as error:
        text = f"cannot connect to {address[0]} port {address[1]}: {error.strerror or error}"
        raise WireError(error.errno or errno.ECONNREFUSED, text) from None
    try:
        tune(sock)
        mine = stream_hello()
        newest = protocol.newest()
        offer = newest if newest > protocol.OLDEST else 0
        sock.sendall(PREAMBLE.pack(MAGIC, protocol.OLDEST, kind, offer, mine))
        magic, version, _, refusal, theirs = PREAMBLE.unpack(
            _read_exactly(sock, PREAMBLE.size, time.monotonic() + timeout)
        )
        if magic != MAGIC:
            raise WireError(errno.EPROTO, "the peer does not speak the replication protocol")
        if refusal or not protocol.OLDEST <= version <= newest:
            why = Refusal(refusal) if refusal in set(Refusal) else Refusal.VERSION
            raise WireRefused(why or Refusal.VERSION, _REFUSED[why or Refusal.VERSION])
        sender, receiver = stream_ciphers(key, _context(module, kind), mine, theirs, client=True)
        channel = Channel(sock, sender, receiver)
        channel.send(Op.HELLO, body=msgpack.packb({**hello, "speaks": newest}), timeout=timeout)
        welcome = decode_map(expect(channel.receive_within(timeout), Op.WELCOME))
        channel.limit = MAX_FRAME
        _not_talked_down(version, welcome, newest)
        if not welcome.get("ok"):
            code = welcome.get("refusal")
            refused = Refusal(code) if isinstance(code, int) and code in set(Refusal) else Refusal.ROLE
            raise WireRefused(refused, str(welcome.get("text", "refused by the peer")))
    except BaseException:
        sock.close()
        raise
    return channel, welcome


def accept(
    sock: socket.socket, module: str, keys: Sequence[bytes], *, timeout: float = 10.0
) -> tuple[Channel, Kind, dict[str, Any]]:
    """Server side up to the client's HELLO, which any of the keys may open; the caller answers with `welcome` or
    `refuse`. Raises WireError."""
    tune(sock)
    deadline = time.monotonic() + timeout
    raw = _read_exactly(sock, PREAMBLE.size, deadline)
    magic, oldest, kind_byte, offer, theirs = PREAMBLE.unpack(raw)
    if magic != MAGIC:
        raise WireError(errno.EPROTO, "not the replication protocol")
    mine = stream_hello()
    newest = protocol.newest()
    theirs_newest = max(oldest, offer)
    version = min(theirs_newest, newest)
    if not max(oldest, protocol.OLDEST) <= version or kind_byte not in set(Kind):
        sock.sendall(PREAMBLE.pack(MAGIC, newest, kind_byte, Refusal.VERSION, mine))
        raise WireError(errno.EPROTO, protocol.refusal(theirs_newest, newest))
    kind = Kind(kind_byte)
    sock.sendall(PREAMBLE.pack(MAGIC, version, kind, 0, mine))
    length = _read_exactly(sock, 4, deadline)
    (size,) = _unpack_length(length)
    if not HEADER_SIZE + StreamCipher.overhead <= size <= MAX_FIRST_FRAME:
        raise WireError(errno.EPROTO, f"frame of {size} bytes refused")
    sealed = _read_exactly(sock, size, deadline)
    for key in keys:
        sender, receiver = stream_ciphers(key, _context(module, kind), theirs, mine, client=False)
        try:
            first = receiver.open(sealed, length)
        except SealError:
            continue
        channel = Channel(sock, sender, receiver)
        channel.received, channel.limit = 1, MAX_FRAME
        hello = decode_map(expect(first, Op.HELLO))
        _not_talked_down(version, hello, newest)
        return channel, kind, hello
    raise WireError(errno.EACCES, "the peer has another key")


def _not_talked_down(version: int, said: dict[str, Any], newest: int) -> None:
    """The version agreed in clear must be what the sealed words of the peer lead to; they are taken out of what it
    `said`. Raises WireError."""
    speaks = said.pop("speaks", protocol.OLDEST)
    if not isinstance(speaks, int) or version != min(max(speaks, protocol.OLDEST), newest):
        raise WireError(errno.EPROTO, "the agreement on a protocol version was altered on its way")


def welcome(channel: Channel, **fields: Any) -> None:
    """Accept a client."""
    _answer(channel, ok=True, **fields)


def refuse(channel: Channel, refusal: Refusal, text: str) -> None:
    """Refuse a client that holds the key."""
    _answer(channel, ok=False, refusal=int(refusal), text=text)


def _answer(channel: Channel, **fields: Any) -> None:
    channel.send(Op.WELCOME, body=msgpack.packb({"speaks": protocol.newest(), **fields}), timeout=10.0)


def expect(frame: bytes, op: Op) -> memoryview:
    """Body of a frame that must be `op`. Raises WireError."""
    if frame[0] != op:
        raise WireError(errno.EPROTO, f"expected {op.name}, got operation {frame[0]}")
    return memoryview(frame)[HEADER_SIZE:]


def decode_map(body: bytes | memoryview) -> dict[str, Any]:
    """A msgpack map with text keys. Raises WireError for anything else. Bytes stay bytes."""
    try:
        value = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise WireError(errno.EPROTO, f"malformed message: {error}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise WireError(errno.EPROTO, "malformed message: not a map")
    return value


def valid_path(path: bytes) -> bool:
    """Whether a relative path stays inside its directory: no empty, '.' or '..' part, no NUL. b"" is valid."""
    if not path:
        return True
    if b"\0" in path or len(path) > 65535:
        return False
    return all(part not in (b"", b".", b"..") for part in path.split(b"/"))


assert STREAM_HELLO_SIZE == 16
