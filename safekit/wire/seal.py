"""Sealed datagrams and streams: what crosses a wire is authenticated and encrypted.

Datagram on a wire (AES-256-GCM):

    magic 2 | protocol version 1 | key id 2 | sender tag 8 | epoch 8 | counter 4 | ciphertext + tag 16

Each sender has its own key, derived from the shared key, the context (which wire) and its name, so that two
servers never use one nonce with one key. The nonce is epoch + counter; an epoch is used by one process only
(`next_epoch`), and tells the newest protocol version that it speaks (safekit.wire.protocol). Names are not sent in
clear: the sender tag is a keyed hash of the name, and receivers know the names that they expect.

Local datagrams carry a keyed hash only: the loopback cannot be overheard by other users, but anybody can
send to a local port.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safekit.disk.files import locked, reserve, write_atomic
from safekit.wire import protocol

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"SK"
KEY_SIZE = 32
_HEADER = struct.Struct(">2sBH8sQI")
_NONCE = struct.Struct(">QI")
_TAG = 16
MAX_DATAGRAM = 65507
_WINDOW = 64
_MAC_SIZE = 16

SealProblem = Literal["malformed", "version", "key", "replay"]


class SealError(Exception):
    """A datagram that must be ignored. `kind` says why; `detail` is for a log line. `sender`: the server in whose
    name a replayed one is."""

    def __init__(self, kind: SealProblem, detail: str, sender: str = "") -> None:
        super().__init__(detail)
        self.sender = sender
        self.kind = kind
        self.detail = detail


def derive(key: bytes, *labels: str, size: int = KEY_SIZE) -> bytes:
    """A key for one purpose, from the shared one. Labels are length-prefixed, so ("ab","c") != ("a","bc")."""
    digest = hashlib.blake2b(key=key, digest_size=size)
    for label in labels:
        data = label.encode()
        digest.update(len(data).to_bytes(2, "big") + data)
    return digest.digest()


def _aead(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def key_id(key: bytes, context: str) -> int:
    """Two bytes that tell keys apart without revealing them."""
    return int.from_bytes(derive(key, "id", context, size=2), "big")


def load_key(path: Path) -> bytes:
    """Read a key file: 64 hexadecimal digits, then perhaps lines that begin with #. Raises OSError or ValueError with
    the path in the text."""
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    text = "".join(line.strip() for line in lines if not line.startswith("#"))
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE:
        raise ValueError(f"{path}: not a key file (64 hexadecimal digits expected)")
    return key


def new_key() -> bytes:
    """A fresh random key."""
    return os.urandom(KEY_SIZE)


def next_epoch(path: Path) -> int:
    """A number larger than any that was returned before for `path`, also after a power failure and when the
    clock goes back. Durable when it returns. Raises OSError."""
    with locked(path.with_name(path.name + ".lock")):
        try:
            stored = int(path.read_text())
        except (FileNotFoundError, ValueError):
            stored = 0
        epoch = protocol.mark_epoch(max(time.time_ns(), stored + 1), protocol.newest())
        write_atomic(path, str(epoch).encode())
        with contextlib.suppress(OSError):  # no room to put by: it works as long as there is room
            reserve(path)
    if not stored:
        # The clock is all that keeps this epoch from coming again when the file is lost: let it pass the mark.
        while (ahead := epoch - time.time_ns()) >= 0:
            time.sleep(ahead / 1e9 + 1e-3)
    return epoch


class Sealer:
    """Seals datagrams of one sender on one wire (`context`)."""

    def __init__(self, key: bytes, context: str, sender: str, epoch: int) -> None:
        self._context, self._sender, self._epoch = context, sender, epoch
        self._counter = 0
        self.use(key)

    def use(self, key: bytes) -> None:
        """Another key from now on. Epoch and counter go on, so no nonce repeats under a key that comes back."""
        self._aead = _aead(derive(key, "wire", self._context, self._sender))
        self._key_id = key_id(key, self._context)
        self._tag = derive(key, "sender", self._context, self._sender, size=8)

    def seal(self, payload: bytes, version: int = protocol.OLDEST) -> bytes:
        """A datagram in that protocol version; every call uses a new nonce.

        Raises OverflowError after 2**32 datagrams, and ValueError when the datagram would not fit into UDP.
        """
        if len(payload) > MAX_DATAGRAM - _HEADER.size - _TAG:
            raise ValueError(f"payload of {len(payload)} bytes does not fit into a datagram")
        self._counter += 1
        if self._counter >= 1 << 32:
            raise OverflowError("the datagram counter of this epoch is used up")
        header = _HEADER.pack(MAGIC, version, self._key_id, self._tag, self._epoch, self._counter)
        return header + self._aead.encrypt(_NONCE.pack(self._epoch, self._counter), payload, header)


@dataclass(frozen=True)
class Opened:
    """An authentic datagram: who sent it, in which epoch, and what it says."""

    sender: str
    epoch: int
    payload: bytes


@dataclass
class _Seen:
    epoch: int = 0
    highest: int = 0
    mask: int = 0

    def fresh(self, epoch: int, counter: int) -> bool:
        if epoch != self.epoch:
            return epoch > self.epoch
        if counter > self.highest:
            return True
        age = self.highest - counter
        return age < _WINDOW and not self.mask >> age & 1

    def note(self, epoch: int, counter: int) -> None:
        if epoch > self.epoch:
            self.epoch, self.highest, self.mask = epoch, counter, 1
        elif counter > self.highest:
            self.mask = (self.mask << (counter - self.highest) | 1) & ((1 << _WINDOW) - 1)
            self.highest = counter
        else:
            self.mask |= 1 << (self.highest - counter)


class Opener:
    """Opens datagrams of the expected senders; several keys may be valid while a key is being changed."""

    def __init__(self, keys: bytes | Sequence[bytes], context: str, senders: Iterable[str]) -> None:
        self._context = context
        self._seen = {sender: _Seen() for sender in senders}
        self._newest = protocol.newest()
        self.use([keys] if isinstance(keys, bytes) else keys)

    def use(self, keys: Sequence[bytes]) -> None:
        """Other keys from now on. What was received stays known."""
        self._key_ids = {key_id(key, self._context) for key in keys}
        self._by_tag: dict[bytes, tuple[str, AESGCM]] = {
            derive(key, "sender", self._context, sender, size=8): (
                sender,
                _aead(derive(key, "wire", self._context, sender)),
            )
            for key in keys
            for sender in self._seen
        }

    @property
    def senders(self) -> tuple[str, ...]:
        """The peers that are listened to."""
        return tuple(self._seen)

    def version_for(self, *receivers: str) -> int:
        """The newest protocol version that all of these peers read, by what was heard of them last."""
        versions = (protocol.version_of_epoch(self._seen[name].epoch) for name in receivers)
        return min((self._newest, *versions))

    def version_heard(self) -> int:
        """The newest protocol version that all peers read who were heard; OLDEST before anybody was."""
        heard = [seen.epoch for seen in self._seen.values() if seen.epoch > 0]
        return min((self._newest, *map(protocol.version_of_epoch, heard))) if heard else protocol.OLDEST

    def open(self, datagram: bytes) -> Opened:
        """Check and decrypt. Raises SealError, never anything else, whatever the bytes are."""
        from cryptography.exceptions import InvalidTag

        if len(datagram) < _HEADER.size + _TAG or datagram[:2] != MAGIC:
            raise SealError("malformed", "not a SafeKit datagram")
        _, version, identity, tag, epoch, counter = _HEADER.unpack_from(datagram)
        if not protocol.OLDEST <= version <= self._newest:
            raise SealError("version", protocol.refusal(version, self._newest))
        if identity not in self._key_ids:
            raise SealError("key", "sealed with another key")
        known = self._by_tag.get(tag)
        if known is None:
            raise SealError("key", "from a server that is not in the configuration")
        sender, aead = known
        seen = self._seen[sender]
        if not seen.fresh(epoch, counter):
            raise SealError("replay", f"old datagram of {sender}", sender)
        header = datagram[: _HEADER.size]
        try:
            payload = aead.decrypt(_NONCE.pack(epoch, counter), datagram[_HEADER.size :], header)
        except InvalidTag:
            raise SealError("key", f"altered datagram in the name of {sender}") from None
        seen.note(epoch, counter)
        return Opened(sender, epoch, payload)


class StreamCipher:
    """One direction of a TCP connection: frames in order, a counter as nonce, so that a frame that is lost,
    repeated, altered or moved is noticed."""

    overhead = _TAG

    def __init__(self, key: bytes) -> None:
        self._aead = _aead(key)
        self._counter = 0

    def _nonce(self) -> bytes:
        self._counter += 1
        return self._counter.to_bytes(12, "big")

    def seal(self, frame: bytes | bytearray | memoryview, aad: bytes = b"") -> bytes:
        """Encrypt the next frame; `aad` (a length header) is authenticated with it."""
        return self._aead.encrypt(self._nonce(), frame, aad)

    def open(self, sealed: bytes | bytearray | memoryview, aad: bytes = b"") -> bytes:
        """Decrypt the next frame. Raises SealError."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(self._nonce(), sealed, aad)
        except InvalidTag:
            raise SealError("key", "the stream was altered, or the peer has another key") from None


STREAM_HELLO_SIZE = 16


def stream_hello() -> bytes:
    """Random bytes that each side sends first, in clear."""
    return os.urandom(STREAM_HELLO_SIZE)


def stream_ciphers(
    key: bytes, context: str, client_hello: bytes, server_hello: bytes, *, client: bool
) -> tuple[StreamCipher, StreamCipher]:
    """(sending, receiving) ciphers of a connection. Both sides contribute randomness, so an old recording
    cannot be played to either. A peer without the key fails at its first frame."""
    session = hashlib.blake2b(client_hello + server_hello, key=derive(key, "stream", context), digest_size=32).digest()
    upward, downward = derive(session, "client"), derive(session, "server")
    return (StreamCipher(upward), StreamCipher(downward)) if client else (StreamCipher(downward), StreamCipher(upward))


def mac_seal(key: bytes, payload: bytes) -> bytes:
    """A local datagram: keyed hash, then the payload."""
    return hashlib.blake2b(payload, key=key, digest_size=_MAC_SIZE).digest() + payload


def mac_open(key: bytes, datagram: bytes) -> bytes:
    """The payload of a local datagram. Raises SealError."""
    payload = datagram[_MAC_SIZE:]
    expected = hashlib.blake2b(payload, key=key, digest_size=_MAC_SIZE).digest()
    if not hmac.compare_digest(expected, datagram[:_MAC_SIZE]):
        raise SealError("key", "local datagram without the right key")
    return payload
