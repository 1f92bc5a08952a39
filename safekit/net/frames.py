"""Sending and hearing ARP and neighbour discovery on one interface, through packet sockets.

The filter in the kernel passes only what is said about the addresses that matter, so that a busy network
does not wake a process for nothing.
"""

from __future__ import annotations

import socket
import struct
import threading
from array import array
from collections.abc import Iterable, Iterator

from safekit.net.packets import ETH_P_ARP, ETH_P_IPV6, IP, Heard, multicast_mac, parse, solicited_node

_SO_ATTACH_FILTER = 26
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST = 263, 1, 0
_FRAME = 256
_BURST = 256
_MAX_FILTERED = 60

# Classic BPF: load a word or a byte at an offset, compare with a constant, return a length.
_LOAD_WORD, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x20, 0x30, 0x15, 0x06
_ARP_SENDER, _ARP_TARGET = 28, 38
_NEXT_HEADER, _ICMP_TYPE, _IPV6_SOURCE_END, _ND_TARGET_END = 20, 54, 34, 74

Instruction = tuple[int, int, int, int]


def listening_filter(protocol: int, addresses: Iterable[IP]) -> list[Instruction]:
    """BPF program that keeps the frames of `protocol` (ARP or IPv6) about `addresses`.

    For IPv6 the last four bytes of an address decide; the parser compares the rest. With more than 60
    addresses (jumps are short) every ARP or discovery frame passes.
    """
    version = 4 if protocol == ETH_P_ARP else 6
    wanted = sorted({int.from_bytes(ip.packed[-4:], "big") for ip in addresses if ip.version == version})
    every = len(wanted) > _MAX_FILTERED
    if protocol == ETH_P_ARP:
        tests = [] if every else [(_ARP_SENDER, wanted), (_ARP_TARGET, wanted)]
        return _either(tests) if tests else [(_RETURN, 0, 0, _FRAME)]
    tests = [] if every else [(_ND_TARGET_END, wanted), (_IPV6_SOURCE_END, wanted)]
    rest = _either(tests) if tests else [(_RETURN, 0, 0, _FRAME)]
    return [
        (_LOAD_BYTE, 0, 0, _NEXT_HEADER),
        (_JUMP_EQUAL, 1, 0, socket.IPPROTO_ICMPV6),
        (_RETURN, 0, 0, 0),
        (_LOAD_BYTE, 0, 0, _ICMP_TYPE),
        (_JUMP_EQUAL, 2, 0, 135),
        (_JUMP_EQUAL, 1, 0, 136),
        (_RETURN, 0, 0, 0),
        *rest,
    ]


def _either(tests: list[tuple[int, list[int]]]) -> list[Instruction]:
    """Accept when the word at one of the offsets is one of its values."""
    program: list[Instruction] = []
    total = sum(1 + len(values) for _, values in tests)
    for offset, values in tests:
        program.append((_LOAD_WORD, 0, 0, offset))
        for value in values:
            # Over what remains of the tests and over the rejection, to the acceptance.
            program.append((_JUMP_EQUAL, total - len(program), 0, value))
    return [*program, (_RETURN, 0, 0, 0), (_RETURN, 0, 0, _FRAME)]


class FrameSocket:
    """One interface: sends frames, and hears what is said about `addresses` when there are any.

    Raises OSError when the interface is gone or packets may not be sent raw (CAP_NET_RAW). The socket does
    not block.
    """

    def __init__(self, interface: str, index: int, addresses: Iterable[IP] = ()) -> None:
        self.interface = interface
        self.index = index
        self.addresses = frozenset(addresses)
        self._sockets: list[socket.socket] = []
        self._sender = self._open(0, None)
        try:
            for protocol, version in ((ETH_P_ARP, 4), (ETH_P_IPV6, 6)):
                if any(ip.version == version for ip in self.addresses):
                    self._open(protocol, listening_filter(protocol, self.addresses))
        except OSError:
            self.close()
            raise

    def _open(self, protocol: int, program: list[Instruction] | None) -> socket.socket:
        # Protocol 0 hears nothing: the filter is attached before the socket is bound to a protocol.
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        self._sockets.append(opened)
        if program is not None:
            _attach(opened, program)
        opened.bind((self.interface, protocol))
        if protocol == ETH_P_IPV6:
            # Probes of others go to the group of the address; the kernel joins it only for its own addresses.
            for ip in self.addresses:
                if ip.version == 6:
                    group = multicast_mac(solicited_node(ip))
                    membership = struct.pack("=iHH8s", self.index, _PACKET_MR_MULTICAST, 6, group)
                    opened.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
        return opened

    def send(self, *frames: bytes) -> None:
        """Put frames on the network. Raises OSError (ENETDOWN, ENXIO: the interface is down or gone)."""
        for frame in frames:
            self._sender.send(frame)

    def filenos(self) -> tuple[int, ...]:
        """Descriptors to wait on for `heard`."""
        return tuple(s.fileno() for s in self._sockets if s is not self._sender)

    def heard(self) -> Iterator[Heard]:
        """What has been said since the last call about our addresses, at most a burst of it, without what we
        sent ourselves."""
        for listener in self._sockets:
            if listener is self._sender:
                continue
            for _ in range(_BURST):
                try:
                    frame, origin = listener.recvfrom(_FRAME)
                except BlockingIOError:
                    break
                if origin[2] == socket.PACKET_OUTGOING:
                    continue
                yield from (said for said in parse(frame) if said.address in self.addresses)

    def close(self) -> None:
        """Close now: the kernel takes 15 ms or more for each of the up to three sockets."""
        for opened in self._sockets:
            opened.close()

    def close_aside(self) -> None:
        """Close without making the caller wait. Stop waiting on the descriptors first."""
        threading.Thread(target=self.close, name="close", daemon=True).start()


def _attach(target: socket.socket, program: list[Instruction]) -> None:
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    memory = array("B", code)
    address, _ = memory.buffer_info()
    target.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), address))
