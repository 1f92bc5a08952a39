"""What the packet filters of a farm module are about: interfaces, virtual addresses, rules (13.5.5, 13.5.6). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from safekit.model.types import Vip
from safekit.net.jhash import client_bucket
from safekit.net.packets import IP, mac_bytes

Mode = Literal["invisible", "directed"]
Proto = Literal["tcp", "udp", "arp"]
Filter = Literal["on_addr", "on_port", "on_ipid"]


@dataclass(frozen=True, slots=True)
class Balance:
    """A load balancing rule. vip, port: None for any. group: index of its group. label: for people."""

    proto: Proto
    filter: Filter
    group: int
    vip: IP | None
    port: int | None

    @property
    def label(self) -> str:
        port = "" if self.proto == "arp" else f" port {self.port or '*'}"
        return f"{self.vip or '*'} {self.proto}{port} {self.filter}"

    def matches(self, vip: IP, proto: str, port: int | None) -> bool:
        """Whether a packet to vip and port is balanced by this rule."""
        return self.proto == proto and self.vip in (None, vip) and self.port in (None, port)

    def bucket(self, client: IP, port: int, identification: int = 0) -> int:
        """The bucket of a client's packet, as the kernel computes it."""
        return client_bucket("on_addr" if self.proto == "arp" else self.filter, client, port, identification)


@dataclass(frozen=True, slots=True)
class Wire:
    """An interface with virtual addresses. mac: its own. vmac: the invisible MAC of the addresses; in directed
    mode None. gather: the multicast MAC under which the servers ask each other for the holder of a connection."""

    number: int
    device: str
    index: int
    mac: bytes
    mode: Mode
    vmac: bytes | None
    gather: bytes
    vips: tuple[IP, ...]

    @property
    def v4(self) -> tuple[IPv4Address, ...]:
        return tuple(ip for ip in self.vips if isinstance(ip, IPv4Address))

    @property
    def v6(self) -> tuple[IPv6Address, ...]:
        return tuple(ip for ip in self.vips if isinstance(ip, IPv6Address))


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that does not change while the module runs. rules: in the order in which they are tried, the
    more specific ones first. nodes: how many servers the farm has; me: our number."""

    module: str
    me: int
    nodes: int
    groups: tuple[str, ...]
    wires: tuple[Wire, ...]
    rules: tuple[Balance, ...]

    @property
    def table(self) -> str:
        """Name of the nftables table. Names of modules may hold what nftables does not take."""
        return "safekit_" + re.sub(r"[^A-Za-z0-9_]", lambda m: f"_{ord(m[0]):x}_", self.module)

    def rules_of(self, wire: Wire, proto: Proto) -> tuple[Balance, ...]:
        """The rules that concern an interface."""
        return tuple(r for r in self.rules if r.proto == proto and (r.vip is None or r.vip in wire.vips))

    def rule_for(self, vip: IP, proto: str, port: int | None) -> Balance | None:
        """The rule that balances packets to this address and port, None when they are not balanced."""
        return next((rule for rule in self.rules if rule.matches(vip, proto, port)), None)

    @property
    def vips(self) -> tuple[IP, ...]:
        return tuple(ip for wire in self.wires for ip in wire.vips)


def default_vmac(first: IP) -> bytes:
    """5A:FE and the first virtual address in hexadecimal (13.5.5); of an IPv6 address the last four bytes."""
    return b"\x5a\xfe" + first.packed[-4:]


def gather_mac(first: IP) -> bytes:
    """A multicast MAC of our own making, different for each interface."""
    return b"\x03\xfe" + first.packed[-4:]


def virtual_mac(configured: str | None, first: IP) -> bytes:
    """The invisible MAC of an interface. Raises ValueError for one that is malformed or not unicast."""
    if configured is None:
        return default_vmac(first)
    mac = mac_bytes(configured)
    if mac[0] & 1 or not any(mac):
        raise ValueError(f"virtual MAC address {configured} is not a unicast address; its first byte must be even")
    return mac


def balances(vip: Vip, resolved: Mapping[str, IP]) -> tuple[Balance, ...]:
    """The rules of all groups in the order in which they are tried: a rule for one address before a rule for
    all, a rule for one port before a rule for all, then as configured. A rule for an address that is not
    known (a name that cannot be resolved) is left out."""
    found: list[Balance] = []
    for number, group in enumerate(vip.groups):
        for rule in group.rules:
            ip = resolved.get(rule.virtual_addr) if rule.virtual_addr is not None else None
            if rule.virtual_addr is None or ip is not None:
                found.append(Balance(rule.proto, rule.filter, number, ip, rule.port))
    return tuple(sorted(found, key=lambda rule: (rule.vip is None, rule.port is None)))


Connection = tuple[bytes, int, bytes, int]
"""Client address, client port, virtual address, its port."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the filters have to do at this moment.

    speaks: answer for the virtual addresses (ARP, neighbour discovery, traffic without a rule). owners, mine,
    shared: as in core.Plan. macs: of the other servers, for each interface. keep: open connections that stay
    here although their bucket is not plainly ours; held: for each group the buckets where there may be some,
    () for none. doubt: seconds for which a client must repeat itself before it is told that its connection is not
    known here, 0 to tell it at once.
    """

    speaks: bool
    owners: tuple[tuple[int, ...], ...]
    mine: tuple[int, ...]
    shared: tuple[int, ...]
    macs: Mapping[int, Sequence[bytes]]
    keep: frozenset[Connection] = frozenset()
    held: tuple[int, ...] = ()
    doubt: float = 0.0


def closed(layout: Layout) -> Verdicts:
    """Accept nothing, answer nothing."""
    from vipd.farm.buckets import NOBODY

    count = len(layout.groups)
    return Verdicts(False, ((NOBODY,) * 256,) * count, (0,) * count, (0,) * count, {})
