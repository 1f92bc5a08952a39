"""From the configuration to the interfaces of this server: what the packet filters are about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from safekit.model.types import ModuleConfig, Vip
from safekit.net import addresses as net
from safekit.net.addresses import Address, Link
from safekit.net.packets import IP
from vipd.farm.layout import Layout, Wire, balances, gather_mac, virtual_mac


def layout(
    config: ModuleConfig,
    names: tuple[str, ...],
    node: str,
    resolved: Mapping[str, IP],
    links: Iterable[Link],
    addresses: Iterable[Address],
) -> Layout:
    """The layout of this server. resolved: the texts of the configuration and their addresses.

    Raises ValueError when an address has no interface, or an interface no MAC.
    """
    vip = config.vip or Vip()
    links, addresses = tuple(links), tuple(addresses)
    ours = set(resolved.values())
    wires: list[Wire] = []
    for interface in vip.interfaces:
        if interface.kind == "real":
            continue
        vips = tuple(resolved[entry.addr] for entry in interface.addresses if entry.addr in resolved)
        if not vips:
            continue
        netmask = interface.addresses[0].netmask
        link = _link(vips[0], links, addresses, interface.name, netmask, ours)
        if not link.mac:
            raise ValueError(f"interface {link.name} of virtual IP {vips[0]} is not an Ethernet interface")
        invisible = interface.kind == "vmac_invisible"
        wires.append(
            Wire(
                len(wires),
                link.name,
                link.index,
                link.mac,
                "invisible" if invisible else "directed",
                virtual_mac(interface.mac, vips[0]) if invisible else None,
                gather_mac(vips[0]),
                vips,
            )
        )
    return Layout(
        config.name,
        names.index(node),
        len(names),
        tuple(group.name for group in vip.groups),
        tuple(wires),
        balances(vip, resolved),
    )


def _link(
    ip: IP,
    links: tuple[Link, ...],
    addresses: tuple[Address, ...],
    name: str | None,
    netmask: str | None,
    ours: set[IP],
) -> Link:
    """Where the address is already, else where it belongs."""
    for address in addresses:
        if address.ip == ip:
            return next(link for link in links if link.index == address.index)
    return net.place(ip, links, addresses, name=name, netmask=netmask, ignore=ours).link
