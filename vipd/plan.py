"""What the configuration asks for, and what a probe's answers mean. Pure.

Taking an address that somebody else uses: heart has decided that this server runs the application, so the
peer's answer (it is frozen, or was cut from the heartbeats but not from the clients) does not stop the
take-over, which is what the guide wants of a failover. Any other machine's answer does: two owners would
share the clients between two sets of data, and the administrator has to choose.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from safekit.model.types import ClusterConfig, Interface, Vip, Where
from safekit.net.packets import IP, Heard, Sort


@dataclass(frozen=True, slots=True)
class Request:
    """A virtual address as configured: its text (a name or an address) and what its <interface> says."""

    text: str
    netmask: str | None
    name: str | None
    arpreroute: bool
    arpinterval: int
    arpelapse: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """A configured virtual address whose name is resolved."""

    request: Request
    ip: IP


def requests(vip: Vip, where: Where = "one_side_alias") -> tuple[Request, ...]:
    """The addresses which a server takes: one_side_alias on the primary one, alias on every server of a farm."""
    return tuple(
        _request(interface, address.addr, address.netmask)
        for interface in vip.interfaces
        for address in interface.addresses
        if address.where == where
    )


def _request(interface: Interface, text: str, netmask: str | None) -> Request:
    return Request(text, netmask, interface.name, interface.arpreroute, interface.arpinterval, interface.arpelapse)


def literal(text: str) -> IP | None:
    """The address that a text is; None for a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def peer_addresses(cluster: ClusterConfig, node: str) -> dict[IP, str]:
    """Addresses of the other nodes of the cluster, with their names (addresses that are literal)."""
    found: dict[IP, str] = {}
    for lan in cluster.lans:
        for entry in lan.nodes:
            for text in (entry.addr, entry.bind_address):
                ip = literal(text)
                if entry.name != node and ip is not None:
                    found[ip] = entry.name
    return found


class Verdict(Enum):
    """Who uses an address."""

    FREE = "free"
    PEER = "peer"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Finding:
    """Verdict on an address; `mac` and `who` name the other user when there is one."""

    verdict: Verdict
    mac: bytes = b""
    who: str = ""


def judge(ip: IP, heard: Iterable[Heard], own: Collection[bytes], peers: Mapping[bytes, str]) -> Finding:
    """Who uses `ip`, by what was heard. A foreign machine outweighs the peer.

    A probe by the peer means that it is about to ask the same question as we: heart decides between the two.
    A probe by another machine is a use to come (RFC 5227 2.1.1).
    """
    finding = Finding(Verdict.FREE)
    for said in heard:
        if said.address != ip or said.mac in own or said.sort is Sort.QUESTION:
            continue
        if said.mac not in peers:
            return Finding(Verdict.FOREIGN, said.mac, "another machine")
        if said.sort is Sort.CLAIM:
            finding = Finding(Verdict.PEER, said.mac, peers[said.mac])
    return finding
