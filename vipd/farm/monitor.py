"""Notices that another program changed our packet filters (somebody ran `nft flush ruleset`)."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import Callable

from safekit.net.netlink import attributes, messages, monitor
from vipd.farm.nft import NETLINK_NETFILTER

_GROUP_NFTABLES = 7
_SUBSYSTEM = 10
_NEWGEN = 15
_TABLE = 1
_GEN_PID, _GEN_NAME = 2, 3
_GENERIC = 4
_RECEIVE = 1 << 18


class RulesetMonitor:
    """Calls `changed(who)` when a transaction of somebody else touched `table`, or when events were lost.

    The kernel ends the news of a transaction with the identity of its author. Ours is learnt from a
    transaction that we know to be ours: in a container the kernel's number is not the one that we see.
    """

    def __init__(self, table: str, changed: Callable[[str], None]) -> None:
        self._table = table.encode()
        self._changed = changed
        self._touched = False
        self._me: int | None = None
        self._learning = False
        self._socket = monitor(1 << (_GROUP_NFTABLES - 1), NETLINK_NETFILTER, 1 << 22)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self.read)

    def learn(self, transaction: Callable[[], None]) -> None:
        """Run a transaction of ours that touches the table, and note how the kernel names us."""
        self.read()
        self._learning = True
        try:
            transaction()
            self.read()
        finally:
            self._learning = False

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def read(self) -> None:
        """Take what the kernel has told so far."""
        while True:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._touched = False
                self._changed("unknown: too many changes at once")
                continue
            for _, _, message in messages(data):
                if message.kind >> 8 == _SUBSYSTEM:
                    self._note(message.kind & 0xFF, attributes(message.body[_GENERIC:]))

    def _note(self, kind: int, found: dict[int, bytes]) -> None:
        if kind != _NEWGEN:
            # The name of the table is the first attribute of every object of one.
            self._touched |= found.get(_TABLE, b"").rstrip(b"\0") == self._table
            return
        touched, self._touched = self._touched, False
        (author,) = struct.unpack("!I", found.get(_GEN_PID, bytes(4)))
        if not touched:
            return
        if self._learning:
            self._me = author
        elif author != self._me:
            name = found.get(_GEN_NAME, b"?").rstrip(b"\0").decode(errors="replace")
            self._changed(f"{name}, pid {author}")
