"""vipd in a farm module: what heart and the tools ask of it (guide 6, 13.4, 13.5).

Bus operations, each answered when its effect is there:

    vip_init    at the start of the module, in WAIT: remove what a crash left, become a member of the farm that
                takes no part yet.                                              -> {removed: [addr]}
    vip_set     set the addresses and their filters, closed. BusError as in a mirror ('vip_duplicate', ...),
                'farm_filter'.                                                  -> {set: [addr]}
    farm_join   take part: from now on clients come. After start_both.          -> status
    farm_leave  take no part: nobody new comes, open connections stay. Before stop_both.
                                                                                -> {connections: how many}
    vip_unset   leave, reset what is still open, remove addresses and filters, say goodbye. -> {unset: [addr]}
    status      members, shares, bitmaps, addresses. counters: packets and connections of each rule.
    reload      the cluster configuration has changed, or names may have other addresses.
    announcements  for arpreroute.

Each may be repeated. vipd stopped or killed leaves addresses and filters as they are; when it is back, it goes
on with them.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from safekit.bus.asking import Document, Service
from safekit.bus.endpoint import BusError
from safekit.bus.requests import vipd as asked
from safekit.bus.requests.heart import Event
from safekit.model.types import Vip
from safekit.net import addresses as net
from safekit.net.addresses import Address, Link
from safekit.net.packets import mac_text
from safekit.process.frame import Context
from vipd.announce import Announcement
from vipd.farm import memory, place
from vipd.farm.engine import NftablesEngine
from vipd.farm.layout import Layout
from vipd.farm.nfqueue import QueueEngine
from vipd.farm.nft import NftError
from vipd.farm.service import Farm
from vipd.holder import Holder
from vipd.kernel_events import KernelEvents
from vipd.names import Resolver
from vipd.plan import peer_addresses, requests
from vipd.teller import Teller
from vipd.watcher import Watcher
from vipd.wires import Wires


class FarmVipd:
    """The process."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ready = asyncio.Event()
        self._vip = context.config.vip or Vip()
        self._wires = Wires(peer_addresses(context.cluster, context.node), self._conflict)
        self._requests = requests(self._vip, "alias")
        self._resolver = Resolver()
        self.holder = Holder(
            context.log,
            self._requests,
            self._resolver,
            self._wires,
            context.paths.var / "vip.json",
            reset=self._vip.tcpreset,
            changed=self._changed,
            alone=False,
        )
        self.watcher = Watcher(context.log, self.holder, self._notify_heart)
        self._teller = Teller(context, self._announcements)
        self._farm: Farm | None = None
        self._unusable = ""

    def service(self) -> Service:
        """What vipd of a farm serves; it waits until what was there at start has been looked at."""
        return Service(
            asked.VIPD,
            [
                (asked.Set, self._set_all),
                (asked.Unset, self._unset_all),
                (asked.Init, self._init),
                (asked.Join, self._join),
                (asked.Leave, self._leave),
                (asked.GetCounters, self._counters),
                (asked.GetAnnouncements, self._told),
                (asked.Reload, self._reload),
                (asked.GetStatus, self._status),
            ],
            self._ready.wait,
        )

    def _usable(self) -> Farm:
        if self._farm is None:
            raise BusError("farm_unusable", self._unusable)
        return self._farm

    async def _set_all(self, _: asked.Set) -> asked.IsSet:
        return asked.IsSet(tuple(await self._set(self._usable())))

    async def _unset_all(self, _: asked.Unset) -> asked.IsUnset:
        return asked.IsUnset(tuple(await self._unset(self._usable())))

    async def _init(self, _: asked.Init) -> asked.Removed:
        farm = self._usable()
        await farm.stop(remove=True)
        await farm.clean(await self._layout(quiet=True))
        removed = await self.holder.release("vip_leftover")
        await farm.observe()
        return asked.Removed(tuple(removed))

    async def _join(self, _: asked.Join) -> Document:
        return await self._usable().join()

    async def _leave(self, _: asked.Leave) -> asked.Left:
        return asked.Left((await self._usable().leave())["connections"])

    async def _counters(self, _: asked.GetCounters) -> Document:
        return self._usable().counters()

    async def _told(self, _: asked.GetAnnouncements) -> asked.Announcements:
        return asked.Announcements(tuple(a.to_fields() for a in self._announcements()))

    async def _reload(self, _: asked.Reload) -> None:
        farm = self._usable()
        self._context.reload()
        self._wires.expect(peer_addresses(self._context.cluster, self._context.node))
        await farm.follow()

    async def _status(self, _: asked.GetStatus) -> Document:
        farm = self._usable()
        return {**farm.status(), **self._held(), "datagrams": farm.datagrams()}

    async def main(self) -> None:
        """Run until SIGTERM. Addresses and filters stay: their removal is heart's order."""
        events = KernelEvents(self._address, self._link, self.watcher.lost)
        telling = asyncio.create_task(self._teller.run())
        try:
            await self._begin()
            self._ready.set()
            await self._context.stopping.wait()
        finally:
            telling.cancel()
            if self._farm is not None:
                await self._farm.stop(remove=False)
            events.close()
            self.holder.close()

    async def _begin(self) -> None:
        try:
            farm = self._context.config.farm
            assert farm is not None, "a farm module has <farm>"
            engine = QueueEngine(farm.port) if self._vip.engine == "nfqueue" else NftablesEngine()
            self._farm = Farm(self._context, engine, self._wires.share)
        except (NftError, ValueError) as error:
            self._unusable = str(error)
            self._context.log.event("farm_filter_failed", reason=str(error))
            return
        self._farm.moved = self._moved
        self._context.figures = self._farm.figures
        if memory.load(self._context.paths.var / memory.FILE).set:
            await self.holder.adopt()
            try:
                layout = await self._layout()
                assert layout is not None
                await self._farm.resume(layout)
            except BusError as error:
                # heart orders the addresses again when it starts the module again.
                self._context.log.event("internal", text=f"vipd: {error.text}")
        with contextlib.suppress(OSError):
            await self.holder.listen()

    async def _layout(self, *, quiet: bool = False) -> Layout | None:
        """Where the filters go. Raises BusError('vip_place'), unless quiet: then None."""
        farm = self._farm
        assert farm is not None
        known = await self._resolver.known(self._requests)
        resolved = {wanted.request.text: wanted.ip for wanted in known}
        try:
            return place.layout(
                self._context.config, farm.names, self._context.node, resolved, net.links(), net.addresses()
            )
        except ValueError as error:
            if quiet:
                return None
            names = ", ".join(request.text for request in self._requests)
            self._context.log.event("vip_not_set", addr=names, reason=str(error))
            raise BusError("vip_place", str(error)) from None

    async def _set(self, farm: Farm) -> list[str]:
        await farm.observe()
        # Whose MACs may answer for the addresses is in the messages of the others.
        await farm.settled()
        layout = await self._layout()
        assert layout is not None
        # First the filter, then the address: a server that takes no part must not answer for it.
        if farm.layout != layout or not farm.installed:
            await farm.install(layout)
        return await self.holder.acquire()

    async def _unset(self, farm: Farm) -> list[str]:
        with contextlib.suppress(BusError):
            # Others that do not answer must not keep this server from stopping.
            await farm.leave()
        removed = await self.holder.release()
        await farm.stop(remove=True)
        return removed

    def _moved(self, lost: bool, met: bool) -> None:
        """The set of servers that take part has changed. One of them tells the network where the addresses
        are: needed for the clients of a server that is gone, and of two halves of a farm that have met and of which
        each has told the network its own MAC (vmac_directed); harmless otherwise."""
        farm = self._farm
        if (lost or met) and farm is not None and farm.announces():
            self.holder.announce_all(contested=met)
        self._teller.changed.set()

    def _announcements(self) -> list[Announcement]:
        return self.holder.announcements() if self._farm is not None and self._farm.announces() else []

    def _changed(self) -> None:
        self.watcher.changed()
        self._teller.changed.set()

    def _address(self, there: bool, address: Address) -> None:
        self.watcher.address(there, address)

    def _link(self, there: bool, link: Link) -> None:
        self.watcher.link(there, link)
        if self._farm is not None:
            self._farm.link_changed(there, link)

    def _conflict(self, ip: Any, mac: bytes, who: str, interface: str) -> None:
        self.watcher.conflict(ip, mac, who, interface)

    def _notify_heart(self, kind: str, **fields: Any) -> None:
        reason = " ".join(f"{name}={value}" for name, value in fields.items())
        self._context.bus.tell(self._context.module, Event(kind, reason))

    def _held(self) -> dict[str, Any]:
        missing = self.watcher.missing()
        held = [
            {
                "addr": h.wanted.request.text,
                "ip": str(ip),
                "interface": h.link.name,
                "prefix": h.prefix,
                "mac": mac_text(h.link.mac),
                "present": ip not in missing,
            }
            for ip, h in self.holder.held.items()
        ]
        refused = [{"ip": str(ip), "mac": mac_text(f.mac)} for ip, f in self.holder.refused.items()]
        return {"addresses": held, "refused": refused}
