"""The virtual MAC of a mirror's addresses (13.5.5: <virtual_interface type="vmac_invisible"> with one_side_alias).

The clients know a MAC that moves with the address, so a failover changes nothing for them. It is never the source of
a frame: the switches flood what is sent to it, and the server that holds the address takes it. With vmac_directed the
clients know the MAC of the server, as with <real_interface>.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from safekit.bus.endpoint import BusError
from safekit.model.types import Vip
from safekit.net import addresses as net
from safekit.process.frame import Context
from vipd.farm import place
from vipd.farm.engine import EngineError, NftablesEngine
from vipd.farm.layout import Layout, Verdicts
from vipd.farm.monitor import RulesetMonitor
from vipd.farm.nft import NftError
from vipd.names import Resolver
from vipd.plan import requests
from vipd.wires import Wires

RESTORE_SECONDS = 0.05
_OPEN = Verdicts(True, (), (), (), {})


class VirtualMac:
    """The filters that make it, there while the addresses are. Without an invisible interface nothing is done."""

    def __init__(self, context: Context, resolver: Resolver, wires: Wires) -> None:
        self._context, self._resolver, self._wires = context, resolver, wires
        vip = context.config.vip or Vip()
        invisible = tuple(interface for interface in vip.interfaces if interface.kind == "vmac_invisible")
        self._vip = replace(vip, interfaces=invisible, groups=())
        self._engine: NftablesEngine | None = None
        self._monitor: RulesetMonitor | None = None
        self._layout: Layout | None = None

    async def set(self) -> None:
        """Before the addresses are taken. Repeated: made anew. Raises BusError('vip_filter')."""
        if not self._vip.interfaces:
            return
        try:
            self._layout = await self._place()
            self._install(self._layout)
        except (ValueError, NftError, EngineError) as error:
            self._context.log.event("vip_not_set", addr=self._vip.interfaces[0].addresses[0].addr, reason=str(error))
            raise BusError("vip_filter", str(error)) from None

    async def unset(self) -> None:
        """After the addresses were removed, or to remove what a crash left. Raises BusError('vip_filter')."""
        if not self._vip.interfaces:
            return
        self.close()
        try:
            layout = self._layout or await self._place()
        except ValueError:
            # No interface, no filters on it.
            return
        self._layout = None
        try:
            engine = self._known_engine()
            engine.adopt(layout)
            engine.remove()
        except (NftError, EngineError) as error:
            raise BusError("vip_filter", str(error)) from None

    def close(self) -> None:
        """Stop watching; the filters stay."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def _known_engine(self) -> NftablesEngine:
        if self._engine is None:
            self._engine = NftablesEngine()
        return self._engine

    async def _place(self) -> Layout:
        context = self._context
        known = await self._resolver.known(requests(self._vip))
        resolved = {wanted.request.text: wanted.ip for wanted in known}
        names = tuple(sorted(context.config.nodes(context.cluster)))
        config = replace(context.config, vip=self._vip)
        return place.layout(config, names, context.node, resolved, net.links(), net.addresses())

    def _install(self, layout: Layout) -> None:
        engine, context = self._known_engine(), self._context
        peer = context.config.peer(context.cluster, context.node)
        for wire in layout.wires:
            if wire.vmac is not None and peer is not None:
                # Who answers with it while we do not is the peer, dead to heart and not to the network.
                self._wires.learn_peer(wire.vmac, peer)
        if self._monitor is None:
            self._monitor = RulesetMonitor(layout.table, self._disturbed)
        self._monitor.learn(lambda: engine.install(layout, _OPEN, None))

    def _disturbed(self, who: str) -> None:
        """Another program changed the filters: make them anew, a moment later, when it has finished."""
        self._context.log.event("farm_filter", who=who)
        asyncio.get_running_loop().call_later(RESTORE_SECONDS, self._restore)

    def _restore(self) -> None:
        if self._layout is not None and self._monitor is not None:
            try:
                self._install(self._layout)
            except (NftError, EngineError) as error:
                self._context.log.event("farm_filter_failed", reason=str(error))
