"""Cuts an IP packet that is larger than the network takes (RFC 791, RFC 8200 4.5). Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from safekit.net.packets import checksum

_MORE = 0x2000
_FRAGMENT = 44


def fragments(packet: bytes, mtu: int, identification: int) -> Iterator[bytes]:
    """The packet itself when it fits, else its pieces. identification: for IPv6, which has none in a whole
    packet."""
    if len(packet) <= mtu:
        yield packet
    elif packet[0] >> 4 == 4:
        yield from _four(packet, mtu)
    else:
        yield from _six(packet, mtu, identification)


def _four(packet: bytes, mtu: int) -> Iterator[bytes]:
    start = (packet[0] & 15) * 4
    head, body = packet[:start], packet[start:]
    size = (mtu - start) & ~7
    for offset in range(0, len(body), size):
        piece = body[offset : offset + size]
        more = _MORE if offset + size < len(body) else 0
        made = bytearray(head)
        struct.pack_into("!H", made, 2, start + len(piece))
        struct.pack_into("!H", made, 6, more | offset >> 3)
        struct.pack_into("!H", made, 10, 0)
        struct.pack_into("!H", made, 10, checksum(bytes(made)))
        yield bytes(made) + piece


def _six(packet: bytes, mtu: int, identification: int) -> Iterator[bytes]:
    head, body = bytearray(packet[:40]), packet[40:]
    following = head[6]
    head[6] = _FRAGMENT
    size = (mtu - 48) & ~7
    for offset in range(0, len(body), size):
        piece = body[offset : offset + size]
        more = offset + size < len(body)
        struct.pack_into("!H", head, 4, 8 + len(piece))
        yield bytes(head) + struct.pack("!BBHI", following, 0, offset | more, identification) + piece
