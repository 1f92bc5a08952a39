"""The second engine: the kernel asks this process about packets (engine="nfqueue").

For kernels without the hash expression of nftables, and as the reference that the tests compare with. What a
packet's bucket is, and what follows, is decided here in Python; connection tracking lets the packets of
accepted connections pass by themselves. The price: a dead vipd decides nothing, so new connections wait until
it is back (open ones go on), and a datagram costs tens of microseconds. The library gives at most 4016 bytes of a
packet: in directed mode a larger datagram of another server's client is dropped, never passed on cut short.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Iterable
from enum import Enum
from ipaddress import ip_address
from typing import Any

from vipd.farm import nic, queuerules, ruleset
from vipd.farm.engine import EngineError
from vipd.farm.fragment import fragments
from vipd.farm.layout import Connection, Layout, Verdicts, Wire
from vipd.farm.nft import Nft, NftError, append_link_address_rule, append_queue_rule

MAX_QUEUED = 8192
ORPHAN_SECONDS = 60.0
_RECEIVE_BUFFER = 8 << 20
_TCP, _UDP, _FRAGMENT = 6, 17, 44
_SYN_MASK, _SYN = 0x17, 0x02


class Action(Enum):
    """What happens to a packet. FORWARD: to the owner. GATHER: to all, for whoever holds the connection."""

    ACCEPT = "accept"
    DROP = "drop"
    FORWARD = "forward"
    GATHER = "gather"


def decide(*, directed: bool, from_peer: bool, ours: bool, shared: bool, later: bool) -> Action:
    """The action for a packet of no connection that we hold. ours: we accept its bucket. shared: another
    server may hold connections in it. later: a TCP packet that opens no connection."""
    if not directed:
        return Action.ACCEPT if ours and not (later and shared) else Action.DROP
    if from_peer:
        return Action.ACCEPT if not later or (ours and not shared) else Action.DROP
    if later and shared:
        return Action.GATHER
    return Action.ACCEPT if ours else Action.FORWARD


def _length(data: bytes) -> int:
    """How long the packet is by its own header."""
    offset, head = (2, 0) if data[0] >> 4 == 4 else (4, 40)
    return int(struct.unpack_from("!H", data, offset)[0]) + head


class QueueEngine:
    """queue: number of the netfilter queue, one for each module of a server."""

    def __init__(self, queue: int) -> None:
        try:
            from netfilterqueue import COPY_PACKET, NetfilterQueue
        except ImportError as error:
            raise NftError(f"{error}: install the Python package netfilterqueue, or remove engine=") from None
        self._copy, self._make = COPY_PACKET, NetfilterQueue
        self._queue = queue
        self._nft = Nft()
        self._layout: Layout | None = None
        self._verdicts: Verdicts | None = None
        self._doubt = 0.0
        self._empty = True
        self._bound: Any = None
        self._wires: dict[bytes, Wire] = {}
        self._peers: frozenset[bytes] = frozenset()
        self._senders: dict[int, socket.socket] = {}
        self._identification = 0

    def install(self, layout: Layout, verdicts: Verdicts, lease: float | None) -> None:
        self._layout, self._doubt, self._empty = layout, 0.0, True
        self._wires = {ip.packed: wire for wire in layout.wires for ip in wire.vips}
        try:
            self._bind()
            self._nft.run(queuerules.table(layout))
            append_queue_rule(self._nft, layout.table, queuerules.ASK, self._queue)
            for wire in layout.wires:
                if wire.vmac is not None and wire.v6:
                    append_link_address_rule(layout.table, ruleset.ndfix(wire), wire.vmac)
            for wire in layout.wires:
                nic.accept(wire.index, wire.device, wire.vmac if wire.vmac is not None else wire.gather)
        except (NftError, OSError) as error:
            raise EngineError(f"packet filter: {error}") from None
        self.apply(verdicts, lease)

    def _bind(self) -> None:
        if self._bound is not None:
            return
        bound = self._make()
        bound.bind(self._queue, self._packet, max_len=MAX_QUEUED, mode=self._copy, sock_len=_RECEIVE_BUFFER)
        self._bound = bound
        asyncio.get_running_loop().add_reader(bound.get_fd(), lambda: bound.run(block=False))

    def apply(self, verdicts: Verdicts, lease: float | None) -> None:
        layout = self._known()
        before = self._verdicts
        gained = (
            before is None
            or self._empty
            or any(
                now & ~was & ~shared
                for now, was, shared in zip(verdicts.mine, before.mine, verdicts.shared, strict=True)
            )
        )
        try:
            self._nft.run(
                queuerules.state(layout, speaks=verdicts.speaks, orphans=ORPHAN_SECONDS if gained else None)
                + ruleset.resolution(layout, verdicts)
                + (ruleset.doubt(layout, verdicts.doubt) if verdicts.doubt != self._doubt else "")
                + ruleset.lease(layout, lease)
            )
        except NftError as error:
            raise EngineError(f"packet filter: {error}") from None
        self._doubt, self._empty = verdicts.doubt, False
        # Read by the next packet: one reference changes, so no packet sees half of it.
        self._verdicts = verdicts
        self._peers = frozenset(mac for macs in verdicts.macs.values() for mac in macs)

    def renew(self, lease: float | None) -> None:
        try:
            self._nft.run(ruleset.lease(self._known(), lease))
        except NftError as error:
            raise EngineError(f"packet filter: {error}") from None

    def keep(self, connections: Iterable[Connection]) -> None:
        """Connection tracking knows the connections that were accepted here."""

    def packets(self) -> dict[int, int]:
        try:
            return queuerules.packets(self._nft.read(f"list table inet {self._known().table}", terse=True))
        except NftError as error:
            raise EngineError(f"packet filter: {error}") from None

    def adopt(self, layout: Layout) -> bool:
        self._layout = layout
        try:
            listed = self._nft.read(f"list set netdev {layout.table} lease")
        except NftError:
            return False
        return any(entry.get("set", {}).get("elem") for entry in listed)

    def remove(self) -> None:
        layout = self._known()
        try:
            self._nft.run(queuerules.remove(layout))
            for wire in layout.wires:
                nic.refuse(wire.index, wire.device, wire.vmac if wire.vmac is not None else wire.gather)
        except (NftError, OSError) as error:
            raise EngineError(f"packet filter: {error}") from None
        if self._bound is not None:
            asyncio.get_running_loop().remove_reader(self._bound.get_fd())
            self._bound.unbind()
            self._bound = None
        for sender in self._senders.values():
            sender.close()
        self._senders.clear()

    def _known(self) -> Layout:
        assert self._layout is not None, "install comes first"
        return self._layout

    # ----------------------------------------------------------------------------- packets

    def _packet(self, packet: Any) -> None:
        try:
            accepted = self._judge(packet.get_payload(), packet.get_hw())
        except (struct.error, IndexError, ValueError):
            # Too short for its own headers: no connection can come of it.
            accepted = False
        if accepted:
            packet.accept()
        else:
            packet.drop()

    def _judge(self, data: bytes, hardware: bytes | None) -> bool:
        verdicts, layout = self._verdicts, self._known()
        if verdicts is None:
            return False
        if data[0] >> 4 == 4:
            client, vip, protocol, start = data[12:16], data[16:20], data[9], (data[0] & 15) * 4
            (identification,) = struct.unpack_from("!H", data, 4)
        else:
            client, vip, protocol, start, identification = data[8:24], data[24:40], data[6], 40, 0
            if protocol == _FRAGMENT:
                protocol, start = data[40], 48
        source, destination = struct.unpack_from("!HH", data, start)
        name = "tcp" if protocol == _TCP else "udp"
        rule = layout.rule_for(ip_address(vip), name, destination)
        wire = self._wires.get(vip)
        if rule is None or wire is None:
            return True
        bucket = rule.bucket(ip_address(client), source, identification)
        action = decide(
            directed=wire.mode == "directed",
            from_peer=hardware is not None and hardware[:6] in self._peers,
            ours=bool(verdicts.mine[rule.group] >> bucket & 1),
            shared=bool(verdicts.shared[rule.group] >> bucket & 1),
            later=protocol == _TCP and data[start + 13] & _SYN_MASK != _SYN,
        )
        if action is not Action.ACCEPT and len(data) < _length(data):
            return False
        if action is Action.FORWARD:
            macs = verdicts.macs.get(verdicts.owners[rule.group][bucket], ())
            if wire.number < len(macs):
                self._send(wire, macs[wire.number], data)
        elif action is Action.GATHER:
            self._send(wire, wire.gather, data)
        return action is Action.ACCEPT

    def _send(self, wire: Wire, mac: bytes, data: bytes) -> None:
        sender = self._senders.get(wire.index)
        if sender is None:
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
            sender.bind((wire.device, 0))
            self._senders[wire.index] = sender
        head = mac + wire.mac + (b"\x08\x00" if data[0] >> 4 == 4 else b"\x86\xdd")
        # Defragmented on its way to us; it leaves in pieces again.
        self._identification = self._identification + 1 & 0xFFFFFFFF
        with contextlib.suppress(BlockingIOError):
            try:
                for piece in fragments(data, self._mtu(wire), self._identification):
                    sender.send(head + piece)
            except OSError as error:
                # An interface that is down or full loses packets, like any network.
                if error.errno not in (errno.ENETDOWN, errno.ENXIO, errno.ENOBUFS):
                    raise

    @staticmethod
    def _mtu(wire: Wire) -> int:
        try:
            with open(f"/sys/class/net/{wire.device}/mtu", encoding="ascii") as handle:
                return int(handle.read())
        except (OSError, ValueError):
            return 1500
