"""ARP and neighbour discovery frames: built, and parsed from whatever comes in. Pure.

Announcements update the tables of the neighbours (RFC 826, RFC 4861 7.2.6); probes ask who has an address
without claiming it (RFC 5227, RFC 4862 5.4.2). Addresses are `ipaddress` objects, MACs are 6 bytes.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import Enum

IPv4 = ipaddress.IPv4Address
IPv6 = ipaddress.IPv6Address
IP = IPv4 | IPv6

ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD
BROADCAST = b"\xff" * 6
ALL_NODES = IPv6("ff02::1")

_UNSPECIFIED4 = IPv4(0)
_UNSPECIFIED6 = IPv6(0)
_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ARP_REQUEST, _ARP_REPLY = 1, 2
_IPV6_HEADER = struct.Struct("!IHBB16s16s")
_ICMPV6 = 58
_SOLICITATION, _ADVERTISEMENT = 135, 136
_ND = struct.Struct("!BBHI16s")
_SOURCE_LINK_ADDRESS, _TARGET_LINK_ADDRESS = 1, 2
_FLAG_OVERRIDE = 0x20000000


def mac_text(mac: bytes) -> str:
    """`52:54:00:12:34:56`."""
    return mac.hex(":")


def mac_bytes(text: str) -> bytes:
    """Six bytes of a MAC with `:` or `-` between its pairs. Raises ValueError."""
    mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if len(mac) != 6:
        raise ValueError(f"{text!r} is not a MAC address (six pairs of hexadecimal digits)")
    return mac


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`."""
    if len(data) % 2:
        data += b"\0"
    total = int(sum(struct.unpack(f"!{len(data) // 2}H", data)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def solicited_node(address: IPv6) -> IPv6:
    """The multicast group in which the owner of `address` listens for solicitations."""
    return IPv6(int(IPv6("ff02::1:ff00:0")) | (int(address) & 0xFFFFFF))


def multicast_mac(group: IPv6) -> bytes:
    """Ethernet address of an IPv6 multicast group."""
    return b"\x33\x33" + group.packed[-4:]


def _arp(destination: bytes, mac: bytes, operation: int, sender: IPv4, target_mac: bytes, target: IPv4) -> bytes:
    return _ETHERNET.pack(destination, mac, ETH_P_ARP) + _ARP.pack(
        1, 0x0800, 6, 4, operation, mac, sender.packed, target_mac, target.packed
    )


def arp_probe(mac: bytes, address: IPv4) -> bytes:
    """`Who has address?` with no sender address: no table of a neighbour changes."""
    return _arp(BROADCAST, mac, _ARP_REQUEST, _UNSPECIFIED4, bytes(6), address)


def arp_request(mac: bytes, sender: IPv4, target: IPv4) -> bytes:
    """An ordinary broadcast request: neighbours that know `sender` learn its new MAC from it."""
    return _arp(BROADCAST, mac, _ARP_REQUEST, sender, bytes(6), target)


def gratuitous_arp(mac: bytes, address: IPv4) -> tuple[bytes, bytes]:
    """A request and a reply in which sender and target are `address`: some equipment heeds only one form."""
    return (
        _arp(BROADCAST, mac, _ARP_REQUEST, address, bytes(6), address),
        _arp(BROADCAST, mac, _ARP_REPLY, address, BROADCAST, address),
    )


def _nd(mac: bytes, source: IPv6, destination: IPv6, kind: int, flags: int, target: IPv6, option: bytes) -> bytes:
    body = _ND.pack(kind, 0, 0, flags, target.packed) + option
    pseudo = source.packed + destination.packed + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    header = _IPV6_HEADER.pack(6 << 28, len(body), _ICMPV6, 255, source.packed, destination.packed)
    return _ETHERNET.pack(multicast_mac(destination), mac, ETH_P_IPV6) + header + body


def neighbour_probe(mac: bytes, address: IPv6) -> bytes:
    """The solicitation of duplicate address detection: from `::`, without a link address."""
    return _nd(mac, _UNSPECIFIED6, solicited_node(address), _SOLICITATION, 0, address, b"")


def neighbour_solicitation(mac: bytes, sender: IPv6, target: IPv6) -> bytes:
    """An ordinary solicitation; the answer comes to `sender`."""
    option = bytes((_SOURCE_LINK_ADDRESS, 1)) + mac
    return _nd(mac, sender, solicited_node(target), _SOLICITATION, 0, target, option)


def unsolicited_advertisement(mac: bytes, address: IPv6) -> bytes:
    """To all nodes, with the override flag: tables that know `address` change at once."""
    option = bytes((_TARGET_LINK_ADDRESS, 1)) + mac
    return _nd(mac, address, ALL_NODES, _ADVERTISEMENT, _FLAG_OVERRIDE, address, option)


class Sort(Enum):
    """What a frame says about an address."""

    CLAIM = "claim"  # the sender uses the address
    PROBE = "probe"  # the sender wants to use the address
    QUESTION = "question"  # the sender asks for the address


@dataclass(frozen=True, slots=True)
class Heard:
    """One statement heard from the network: `mac` claims, probes or asks for `address`."""

    sort: Sort
    address: IP
    mac: bytes


def parse(frame: bytes) -> tuple[Heard, ...]:
    """What an Ethernet frame says about addresses; nothing for a frame of another kind or a malformed one."""
    if len(frame) < _ETHERNET.size:
        return ()
    _, source, protocol = _ETHERNET.unpack_from(frame)
    if protocol == ETH_P_ARP:
        return _parse_arp(frame)
    if protocol == ETH_P_IPV6:
        return _parse_nd(frame, source)
    return ()


def _parse_arp(frame: bytes) -> tuple[Heard, ...]:
    if len(frame) < _ETHERNET.size + _ARP.size:
        return ()
    hardware, protocol, hlen, plen, operation, sha, spa, _, tpa = _ARP.unpack_from(frame, _ETHERNET.size)
    if (hardware, protocol, hlen, plen) != (1, 0x0800, 6, 4) or operation not in (_ARP_REQUEST, _ARP_REPLY):
        return ()
    sender, target = IPv4(spa), IPv4(tpa)
    if sender == _UNSPECIFIED4:
        return (Heard(Sort.PROBE, target, sha),) if operation == _ARP_REQUEST else ()
    claim = Heard(Sort.CLAIM, sender, sha)
    if operation == _ARP_REQUEST and target != sender:
        return (claim, Heard(Sort.QUESTION, target, sha))
    return (claim,)


def _parse_nd(frame: bytes, ethernet_source: bytes) -> tuple[Heard, ...]:
    start = _ETHERNET.size + _IPV6_HEADER.size
    if len(frame) < start + _ND.size:
        return ()
    _, length, following, hops, src, _ = _IPV6_HEADER.unpack_from(frame, _ETHERNET.size)
    # A hop limit below 255 crossed a router: forged (RFC 4861 7.1).
    if following != _ICMPV6 or hops != 255 or not _ND.size <= length <= len(frame) - start:
        return ()
    kind, code, _, _, target_bytes = _ND.unpack_from(frame, start)
    target, source = IPv6(target_bytes), IPv6(src)
    if code != 0 or target.is_multicast:
        return ()
    options = frame[start + _ND.size : start + length]
    if kind == _ADVERTISEMENT:
        return (Heard(Sort.CLAIM, target, _link_address(options, _TARGET_LINK_ADDRESS) or ethernet_source),)
    if kind != _SOLICITATION:
        return ()
    if source == _UNSPECIFIED6:
        return (Heard(Sort.PROBE, target, ethernet_source),)
    mac = _link_address(options, _SOURCE_LINK_ADDRESS) or ethernet_source
    return (Heard(Sort.CLAIM, source, mac), Heard(Sort.QUESTION, target, mac))


def _link_address(options: bytes, wanted: int) -> bytes | None:
    offset = 0
    while offset + 2 <= len(options):
        kind, length = options[offset], options[offset + 1] * 8
        if length == 0 or offset + length > len(options):
            return None
        if kind == wanted and length == 8:
            return options[offset + 2 : offset + 8]
        offset += length
    return None
