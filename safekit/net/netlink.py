"""Netlink without a library: requests, dumps and attributes, as few as the product needs.

The figures behind "without" (pyroute2 0.9.7, Python 3.11): importing any part of it imports all of it, which is 237
modules, 120 to 150 ms of processor time and 13.3 MB of private memory (PSS 10.4 MB before, 23.7 MB after), in every
process that does; opening its socket and reading links and addresses adds 0.1 MB. A process of the product has 10 to
16 MB, and an idle server with one module is to have 100 MB: vipd, arpreroute, intfcheck, ipcheck and safeadmin together
would pay 66 MB, two of them 27 MB. What this module and safekit.net.addresses cost is 0.9 MB, and a request takes less
than a millisecond; commands must answer within 150 ms. So pyroute2 is what the tests compare this with
(tests/t2_process/test_net_reference.py), not what the processes run.

Blocking calls, bounded by a time-out: the kernel answers at once or holds a lock for long.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4

NLM_F_REQUEST = 0x001
NLM_F_MULTI = 0x002
NLM_F_ACK = 0x004
NLM_F_DUMP_INTR = 0x010
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ATTRIBUTE_TYPE = 0x3FFF
_RECEIVE = 1 << 18
_DUMP_TRIES = 5
_sequence = itertools.count(1)


class Message(NamedTuple):
    """A netlink message: its type and what follows the header."""

    kind: int
    body: bytes


def messages(data: bytes) -> Iterator[tuple[int, int, Message]]:
    """Split a datagram into (flags, sequence, message). Stops at the first length that cannot be."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield flags, sequence, Message(kind, data[offset + _HEADER.size : offset + length])
        offset += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type; the last one of a type wins. Stops at the first length that cannot be."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            break
        found[kind & _ATTRIBUTE_TYPE] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


class Netlink:
    """A socket for requests, used by one thread at a time; a context manager."""

    def __init__(self, protocol: int = NETLINK_ROUTE, timeout: float = 2.0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(timeout)
        self._socket.bind((0, 0))

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, kind: int, payload: bytes, flags: int = 0) -> list[Message]:
        """One request that the kernel acknowledges; what it answered before the acknowledgement.

        Raises OSError with the kernel's errno, TimeoutError.
        """
        answers, _ = self._exchange(kind, payload, NLM_F_REQUEST | NLM_F_ACK | flags)
        return answers

    def dump(self, kind: int, payload: bytes) -> list[Message]:
        """All objects of a kind, from one consistent pass. Raises OSError, TimeoutError."""
        for _ in range(_DUMP_TRIES):
            answers, interrupted = self._exchange(kind, payload, NLM_F_REQUEST | NLM_F_DUMP)
            if not interrupted:
                break
        # A table that changes during five passes is given as it was seen: whoever follows it hears the changes.
        return answers

    def _exchange(self, kind: int, payload: bytes, flags: int) -> tuple[list[Message], bool]:
        expected = next(_sequence) & 0xFFFFFFFF
        self._socket.send(_HEADER.pack(_HEADER.size + len(payload), kind, flags, expected, 0) + payload)
        answers: list[Message] = []
        interrupted = False
        while True:
            for seen, sequence, message in messages(self._socket.recv(_RECEIVE)):
                if sequence != expected:
                    continue  # the rest of an exchange that timed out
                interrupted = interrupted or bool(seen & NLM_F_DUMP_INTR)
                if message.kind == _NLMSG_DONE:
                    return answers, interrupted
                if message.kind == _NLMSG_ERROR:
                    (error,) = struct.unpack_from("=i", message.body)
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    return answers, interrupted
                answers.append(message)


def monitor(groups: int, protocol: int = NETLINK_ROUTE, receive_buffer: int = 1 << 20) -> socket.socket:
    """A non-blocking socket that receives the events of multicast `groups` (a bit mask).

    recv raises OSError(ENOBUFS) when events were lost: read the state again.
    """
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    events.bind((0, groups))
    return events
