"""Interfaces, addresses and neighbours of this server, straight from the kernel (guide 13.3, 13.5).

`place` is pure and decides where an address belongs; the rest is thin: each function is one question or one
order to the kernel, in well under a millisecond. Nothing here needs asyncio or a library, so commands may
import it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from safekit.net.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink, attribute, attributes
from safekit.net.packets import IP

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100

_IFF_UP, _IFF_LOOPBACK, _IFF_NOARP, _IFF_LOWER_UP = 0x1, 0x8, 0x80, 0x10000
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_EXT_MASK = 1, 3, 29
_SKIP_STATISTICS = 1 << 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 4, 6, 8
_IFA_F_SECONDARY, _IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x01, 0x02, 0x200
_FOREVER = 0xFFFFFFFF
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_INCOMPLETE, _NUD_FAILED, _NUD_NOARP, NUD_PERMANENT = 0x01, 0x20, 0x40, 0x80
_NUD_UNKNOWN = _NUD_INCOMPLETE | _NUD_FAILED | _NUD_NOARP

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")


class PlaceError(ValueError):
    """No interface can carry an address; the text names the address, the cause and the next step."""


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface. `mac` is empty where the interface has none of six bytes."""

    index: int
    name: str
    mac: bytes
    flags: int

    @property
    def up(self) -> bool:
        """Administratively up."""
        return bool(self.flags & _IFF_UP)

    @property
    def carrier(self) -> bool:
        """Up, and connected to something."""
        return self.up and bool(self.flags & _IFF_LOWER_UP)

    @property
    def loopback(self) -> bool:
        return bool(self.flags & _IFF_LOOPBACK)

    @property
    def resolves(self) -> bool:
        """True when neighbours find us by ARP or neighbour discovery, so that announcing makes sense."""
        return bool(self.mac) and not self.flags & (_IFF_LOOPBACK | _IFF_NOARP)


@dataclass(frozen=True, slots=True)
class Address:
    """An address as configured on the interface with that index."""

    index: int
    ip: IP
    prefix: int
    flags: int = 0

    @property
    def network(self) -> Network:
        return ipaddress.ip_network((self.ip, self.prefix), strict=False)

    @property
    def secondary(self) -> bool:
        """IPv4: there was another address of the same network on the interface before."""
        return bool(self.flags & _IFA_F_SECONDARY)

    def where(self) -> Place:
        """The place to put this address back to."""
        return Place(Link(self.index, "", b"", 0), self.prefix, bool(self.flags & _IFA_F_NOPREFIXROUTE))


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the ARP or neighbour discovery table that has a MAC."""

    index: int
    ip: IP
    mac: bytes
    permanent: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where an address goes: the interface, the prefix length, and whether the interface is already in the
    network, so that the address must not bring a route of its own."""

    link: Link
    prefix: int
    in_network: bool


# ------------------------------------------------------------------------------- decisions


def netmask_prefix(netmask: str) -> int:
    """Prefix length of `255.255.255.0` or `24`. Raises ValueError."""
    return ipaddress.IPv4Network(f"0.0.0.0/{netmask}").prefixlen


def place(
    ip: IP,
    links: Iterable[Link],
    addresses: Iterable[Address],
    *,
    name: str | None = None,
    netmask: str | None = None,
    ignore: Collection[IP] = (),
) -> Place:
    """Interface and prefix length for a virtual address (13.5.5).

    The interface is the named one, else the one with the smallest network that contains `ip`; the prefix is
    the netmask's, else that network's. Addresses in `ignore` (the virtual ones) do not make a network.
    Raises PlaceError.
    """
    by_index = {link.index: link for link in links}
    mine = [a for a in addresses if a.ip.version == ip.version and a.ip not in ignore and a.index in by_index]
    around = sorted((a for a in mine if ip in a.network), key=lambda a: (-a.prefix, a.index))
    asked = netmask_prefix(netmask) if netmask is not None and ip.version == 4 else None
    if name is not None:
        link = next((link for link in by_index.values() if link.name == name), None)
        if link is None:
            raise PlaceError(f"there is no interface {name}; correct name= in <interface> or create it")
        here = [a for a in around if a.index == link.index]
        near = here or [a for a in mine if a.index == link.index and not a.ip.is_link_local]
        inherited = near[0].prefix if near else ip.max_prefixlen
        prefix = asked if asked is not None else inherited
        return Place(link, prefix, any(a.prefix == prefix for a in here))
    usable = [a for a in around if not by_index[a.index].loopback]
    if not usable:
        seen = ", ".join(sorted({f"{a.network} ({by_index[a.index].name})" for a in mine if not a.ip.is_loopback}))
        raise PlaceError(
            f"no interface is in its network (there are: {seen or 'none'}); "
            "give the interface an address there, or set name= in <interface>"
        )
    best = next((a for a in usable if by_index[a.index].up), usable[0])
    prefix = asked if asked is not None else best.prefix
    return Place(by_index[best.index], prefix, prefix == best.prefix)


# --------------------------------------------------------------------- questions to the kernel


def _family(ip: IP) -> int:
    return socket.AF_INET if ip.version == 4 else socket.AF_INET6


def parse_link(body: bytes) -> Link:
    """The interface of an RTM_NEWLINK or RTM_DELLINK message."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attributes(body[_IFINFO.size :])
    mac = found.get(_IFLA_ADDRESS, b"")
    name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    return Link(index, name, mac if len(mac) == 6 else b"", flags)


def parse_address(body: bytes) -> Address | None:
    """The address of an RTM_NEWADDR or RTM_DELADDR message, None for another family than IP."""
    family, prefix, flags, _, index = _IFADDR.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = attributes(body[_IFADDR.size :])
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None or len(packed) not in (4, 16):
        return None
    if _IFA_FLAGS in found:
        (flags,) = struct.unpack_from("=I", found[_IFA_FLAGS])
    return Address(index, ipaddress.ip_address(packed), prefix, flags)


def links(netlink: Netlink | None = None) -> tuple[Link, ...]:
    """All interfaces. Raises OSError."""
    payload = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    payload += attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATISTICS))
    with _using(netlink) as kernel:
        return tuple(parse_link(m.body) for m in kernel.dump(RTM_GETLINK, payload) if m.kind == RTM_NEWLINK)


def addresses(netlink: Netlink | None = None) -> tuple[Address, ...]:
    """All IPv4 and IPv6 addresses, in the kernel's order (primary before secondary). Raises OSError."""
    payload = _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    with _using(netlink) as kernel:
        found = (parse_address(m.body) for m in kernel.dump(RTM_GETADDR, payload) if m.kind == RTM_NEWADDR)
        return tuple(address for address in found if address is not None)


def local_addresses() -> frozenset[IP]:
    """The addresses of this server, loopback included. Raises OSError."""
    return frozenset(address.ip for address in addresses())


def local_interfaces() -> tuple[ipaddress.IPv4Interface | ipaddress.IPv6Interface, ...]:
    """The addresses of this server with their networks, without loopback and link-local ones. Raises OSError."""
    return tuple(
        ipaddress.ip_interface((address.ip, address.prefix))
        for address in addresses()
        if not address.ip.is_loopback and not address.ip.is_link_local
    )


def link_named(name: str, netlink: Netlink | None = None) -> Link | None:
    """The interface of that name."""
    return next((link for link in links(netlink) if link.name == name), None)


def neighbours(netlink: Netlink | None = None) -> tuple[Neighbour, ...]:
    """Entries of the neighbour tables whose MAC is known. Raises OSError."""
    payload = _NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    found: list[Neighbour] = []
    with _using(netlink) as kernel:
        for message in kernel.dump(RTM_GETNEIGH, payload):
            family, index, state, _, _ = _NEIGHBOUR.unpack_from(message.body)
            entry = attributes(message.body[_NEIGHBOUR.size :])
            ip, mac = entry.get(_NDA_DST, b""), entry.get(_NDA_LLADDR, b"")
            if family not in (socket.AF_INET, socket.AF_INET6) or len(ip) not in (4, 16) or len(mac) != 6:
                continue
            if not state & _NUD_UNKNOWN:
                found.append(Neighbour(index, ipaddress.ip_address(ip), mac, bool(state & NUD_PERMANENT)))
    return tuple(found)


def learned_mac(addr: str | IP) -> tuple[str, bytes] | None:
    """Interface name and MAC under which the neighbour tables know `addr`, None when they do not.

    Raises OSError, ValueError for a text that is no address.
    """
    ip = ipaddress.ip_address(addr)
    with Netlink() as kernel:
        entry = next((n for n in neighbours(kernel) if n.ip == ip), None)
        if entry is None:
            return None
        name = next((link.name for link in links(kernel) if link.index == entry.index), None)
        return None if name is None else (name, entry.mac)


# ------------------------------------------------------------------------ orders to the kernel


def add_address(netlink: Netlink, where: Place, ip: IP) -> bool:
    """Put an address on an interface, usable at once; False when it was there already. Raises OSError.

    No duplicate address detection by the kernel: it would make an IPv6 address unusable for a second or
    more, and the caller has probed. An IPv6 address is made deprecated: it serves who connects to it, but is
    not chosen as the source of connections that this server opens.
    """
    flags = _IFA_F_NODAD if ip.version == 6 else 0
    if where.in_network and ip.version == 6:
        flags |= _IFA_F_NOPREFIXROUTE
    payload = _IFADDR.pack(_family(ip), where.prefix, flags & 0xFF, 0, where.link.index)
    payload += attribute(_IFA_LOCAL, ip.packed) + attribute(_IFA_ADDRESS, ip.packed)
    payload += attribute(_IFA_FLAGS, struct.pack("=I", flags))
    if ip.version == 6:
        payload += attribute(_IFA_CACHEINFO, struct.pack("=IIII", 0, _FOREVER, 0, 0))
    elif where.prefix <= 30:
        network = ipaddress.ip_network((ip, where.prefix), strict=False)
        payload += attribute(_IFA_BROADCAST, network.broadcast_address.packed)
    try:
        netlink.request(RTM_NEWADDR, payload, NLM_F_CREATE | NLM_F_EXCL)
    except OSError as error:
        if error.errno == errno.EEXIST:
            return False
        raise
    return True


def delete_address(netlink: Netlink, address: Address) -> None:
    """Take an address away; one that is not there is fine. Raises OSError."""
    payload = _IFADDR.pack(_family(address.ip), address.prefix, 0, 0, address.index)
    try:
        netlink.request(RTM_DELADDR, payload + attribute(_IFA_LOCAL, address.ip.packed))
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
            raise


def takes_others_along(address: Address) -> bool:
    """True when deleting the address may delete others: the kernel deletes the secondary IPv4 addresses of a
    network with its primary one, unless it is told to promote them."""
    return address.ip.version == 4 and not address.secondary


def restore_lost(netlink: Netlink, before: Iterable[Address], deleted: Address) -> tuple[Address, ...]:
    """Put back the addresses that went away together with a deleted one; which they are.

    An administrator's addresses must not go with a virtual one. `before` is what was there before. Raises OSError.
    """
    if not takes_others_along(deleted):
        return ()
    there = {(a.index, a.ip) for a in addresses(netlink)}
    lost = tuple(
        a
        for a in before
        if a.index == deleted.index
        and a.ip != deleted.ip
        and a.secondary
        and a.network == deleted.network
        and (a.index, a.ip) not in there
    )
    for other in lost:
        add_address(netlink, other.where(), other.ip)
    return lost


def set_permanent_neighbour(iface: str, addr: str | IP, mac: str | bytes) -> None:
    """Fix the MAC of a neighbour, so that no resolution is needed to reach it (13.3.3, permanent_arp).

    Raises OSError (no such interface, not permitted), ValueError for a malformed address or MAC.
    """
    ip = ipaddress.ip_address(addr)
    packed = mac if isinstance(mac, bytes) else bytes.fromhex(mac.replace(":", "").replace("-", ""))
    if len(packed) != 6:
        raise ValueError(f"{mac!r} is not a MAC address (six bytes)")
    payload = _NEIGHBOUR.pack(_family(ip), socket.if_nametoindex(iface), NUD_PERMANENT, 0, 0)
    payload += attribute(_NDA_DST, ip.packed) + attribute(_NDA_LLADDR, packed)
    with Netlink() as kernel:
        kernel.request(RTM_NEWNEIGH, payload, NLM_F_CREATE | NLM_F_REPLACE)


def forget_neighbour(iface: str, addr: str | IP) -> None:
    """Delete a neighbour entry; one that is not there is fine. Raises OSError, ValueError."""
    ip = ipaddress.ip_address(addr)
    payload = _NEIGHBOUR.pack(_family(ip), socket.if_nametoindex(iface), 0, 0, 0) + attribute(_NDA_DST, ip.packed)
    with Netlink() as kernel:
        try:
            kernel.request(RTM_DELNEIGH, payload)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise


def _using(netlink: Netlink | None) -> contextlib.AbstractContextManager[Netlink]:
    return Netlink() if netlink is None else contextlib.nullcontext(netlink)
