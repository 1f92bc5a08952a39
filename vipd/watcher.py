"""Notices what happens to the addresses we hold: gone, back, interface down or up, claimed by another machine.

It logs and tells heart; what follows is decided by heart's failover rules. The one thing done here is to
announce the addresses again when their interface is plugged in again: it may be in another switch port.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safekit.log.module import ModuleLog
from safekit.net import addresses as net
from safekit.net.addresses import Address, Link
from safekit.net.packets import IP, mac_text
from vipd.holder import Held, Holder

Notify = Callable[..., None]


class Watcher:
    """`notify(kind, **fields)` tells heart."""

    def __init__(self, log: ModuleLog, holder: Holder, notify: Notify) -> None:
        self._log = log
        self._holder = holder
        self._notify = notify
        self._missing: set[IP] = set()
        self._carrier: dict[int, bool] = {}

    def changed(self) -> None:
        """What is held has changed: start from what is there now."""
        self._missing.clear()
        used = {held.link.index for held in self._holder.held.values()}
        self._carrier = {link.index: link.carrier for link in net.links() if link.index in used}

    def missing(self) -> set[IP]:
        """Held addresses which the kernel does not have."""
        return set(self._missing)

    def address(self, there: bool, address: Address) -> None:
        """An address appeared or disappeared."""
        held = self._holder.held.get(address.ip)
        if held is not None and held.link.index == address.index:
            self._presence(held, there)

    def link(self, there: bool, link: Link) -> None:
        """An interface changed or disappeared."""
        if not there:
            self._holder.interface_gone(link.index)
        known = self._carrier.get(link.index)
        carrier = there and link.carrier
        if known is None or known == carrier:
            return
        self._carrier[link.index] = carrier
        self._log.event("vip_link", interface=link.name, state="up" if carrier else "down")
        self._notify("vip_link", interface=link.name, up=carrier)
        if carrier:
            self._holder.announce(link)

    def lost(self) -> None:
        """Events were lost: compare what is there with what we know."""
        there = {(a.index, a.ip) for a in net.addresses()}
        links = {link.index: link for link in net.links()}
        for ip, held in list(self._holder.held.items()):
            self._presence(held, (held.link.index, ip) in there)
            now = links.get(held.link.index)
            self.link(now is not None, now or held.link)

    def conflict(self, ip: IP, mac: bytes, who: str, interface: str) -> None:
        """Another machine claims an address that we hold."""
        held = self._holder.held.get(ip)
        if held is not None:
            text = held.wanted.request.text
            self._log.event("vip_conflict", addr=text, who=who, mac=mac_text(mac), interface=interface)
            self._notify("vip_conflict", addr=text, mac=mac_text(mac), who=who)

    def _presence(self, held: Held, there: bool) -> None:
        ip = held.wanted.ip
        if there == (ip not in self._missing):
            return
        fields: dict[str, Any] = {"addr": held.wanted.request.text, "interface": held.link.name}
        if there:
            self._missing.discard(ip)
            self._log.event("vip_back", **fields)
        else:
            self._missing.add(ip)
            self._log.event("vip_lost", **fields)
            self._notify("vip_lost", **fields)
