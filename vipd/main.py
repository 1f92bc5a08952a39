"""vipd: the virtual addresses of a module.

In a farm module see vipd.farm.process. In a mirror module it holds them while heart says so; see vipd.holder.
What it can be asked stands in safekit.bus.requests.vipd; each request is answered when it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NoReturn

from safekit.bus.asking import Document, Service
from safekit.bus.endpoint import BusError, Handler
from safekit.bus.requests import vipd as asked
from safekit.bus.requests.heart import Event
from safekit.disk import resources
from safekit.model.types import Vip
from safekit.net.packets import mac_text
from safekit.process.frame import Context, run
from vipd.farm.process import FarmVipd
from vipd.holder import Holder
from vipd.kernel_events import KernelEvents
from vipd.names import Resolver
from vipd.plan import Verdict, peer_addresses, requests
from vipd.teller import Teller
from vipd.virtual_mac import VirtualMac
from vipd.watcher import Watcher
from vipd.wires import Wires

PRIMARY_STATES = frozenset({"PRIM", "ALONE"})
PEER_REFRESH_SECONDS = 30.0


class Vipd:
    """The process: wires the parts together and serves the bus."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ready = asyncio.Event()
        vip = context.config.vip or Vip()
        self._wires = Wires(peer_addresses(context.cluster, context.node), self._conflict)
        resolver = Resolver()
        self._virtual_mac = VirtualMac(context, resolver, self._wires)
        self.holder = Holder(
            context.log,
            requests(vip),
            resolver,
            self._wires,
            context.paths.var / "vip.json",
            reset=vip.tcpreset,
            changed=self._changed,
        )
        self._teller = Teller(context, self.holder.announcements)
        self.watcher = Watcher(context.log, self.holder, self._notify_heart)

    def service(self) -> Service:
        """What vipd of a mirror serves."""
        return Service(
            asked.VIPD,
            [
                (asked.Set, self._set),
                (asked.Expect, self._expect),
                (asked.Unset, self._unset),
                (asked.Init, self._init),
                (asked.AnnounceAgain, self._announce),
                (asked.GetAnnouncements, self._announcements),
                (asked.Reload, self._reload),
                (asked.GetStatus, self._status),
            ],
            self._ready.wait,
        )

    async def _set(self, _: asked.Set) -> asked.IsSet:
        await self._virtual_mac.set()
        return asked.IsSet(tuple(await self.holder.acquire()))

    async def _expect(self, _: asked.Expect) -> None:
        await self.holder.expect()

    async def _unset(self, _: asked.Unset) -> asked.IsUnset:
        return asked.IsUnset(tuple(await self._release("vip_unset")))

    async def _init(self, _: asked.Init) -> asked.Removed:
        return asked.Removed(tuple(await self._release("vip_leftover")))

    async def _announce(self, _: asked.AnnounceAgain) -> None:
        self.holder.announce_all(contested=True)

    async def _announcements(self, _: asked.GetAnnouncements) -> asked.Announcements:
        return asked.Announcements(tuple(a.to_fields() for a in self.holder.announcements()))

    async def _reload(self, _: asked.Reload) -> None:
        self._context.reload()
        self._wires.expect(peer_addresses(self._context.cluster, self._context.node))
        await self.holder.follow()

    async def _release(self, code: str) -> list[str]:
        removed = await self.holder.release(code)
        await self._virtual_mac.unset()
        return removed

    async def main(self) -> None:
        """Run until SIGTERM. The addresses stay: the role is heart's, and so is their removal."""
        events = KernelEvents(self.watcher.address, self.watcher.link, self.watcher.lost)
        tasks: list[asyncio.Task[None]] = []
        try:
            role = resources.load(self._context.paths.resources).get("state.local")
            if role is not None and role.value in PRIMARY_STATES:
                await self._adopt()
            else:
                await self._sweep()
            await self.holder.listen()
            self._ready.set()
            tasks = [asyncio.create_task(self._refresh_peers()), asyncio.create_task(self._teller.run())]
            await self._context.stopping.wait()
        finally:
            for task in tasks:
                task.cancel()
            events.close()
            self._virtual_mac.close()
            self.holder.close()

    async def _adopt(self) -> None:
        """After a restart in the primary role: the addresses are held as they are."""
        if await self.holder.adopt():
            with contextlib.suppress(BusError):
                # It is in the log; without the virtual MAC the address serves those who ask anew.
                await self._virtual_mac.set()

    async def _sweep(self) -> None:
        """Remove what a crash of everything left; heart orders it again with vip_init."""
        try:
            await self._release("vip_leftover")
        except BusError as error:
            self._context.log.event("internal", text=f"vipd: {error.text}")

    async def _refresh_peers(self) -> NoReturn:
        """Keep in mind who the peer is on the wire, for the day on which it answers but is no longer heard.

        The lans of the cluster give its MACs; where the virtual address is on another network, the machine that
        answers for it while the peer is primary is the peer.
        """
        peer = self._context.config.peer(self._context.cluster, self._context.node)
        while True:
            self._wires.refresh_peers()
            state = resources.load(self._context.paths.resources).get("state.remote")
            if state is not None and state.value in PRIMARY_STATES and peer is not None:
                for mac in await self.holder.owners():
                    self._wires.learn_peer(mac, peer)
            await asyncio.sleep(PEER_REFRESH_SECONDS)

    def _changed(self) -> None:
        self.watcher.changed()
        self._teller.changed.set()

    def _conflict(self, ip: Any, mac: bytes, who: str, interface: str) -> None:
        self.watcher.conflict(ip, mac, who, interface)

    def _notify_heart(self, kind: str, **fields: Any) -> None:
        reason = " ".join(f"{name}={value}" for name, value in fields.items())
        self._context.bus.tell(self._context.module, Event(kind, reason))

    async def _status(self, _: asked.GetStatus) -> Document:
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
        refused = [
            {"ip": str(ip), "mac": mac_text(f.mac)}
            for ip, f in self.holder.refused.items()
            if f.verdict is Verdict.FOREIGN
        ]
        peers = {mac_text(mac): node for mac, node in self._wires.peer_macs().items()}
        return {"addresses": held, "refused": refused, "peers": peers}


def main() -> NoReturn:
    """Entry point of the process."""
    made: list[Vipd | FarmVipd] = []

    def handler(context: Context) -> Handler:
        made.append(FarmVipd(context) if context.config.service.mode == "farm" else Vipd(context))
        return made[0].service().handle

    async def body(_: Context) -> None:
        await made[0].main()

    run("vipd", body, handler=handler, realtime=True)


if __name__ == "__main__":
    main()
