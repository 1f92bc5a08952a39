"""The packet filters of a farm module as this process keeps them: made, changed by one plan after the other, kept alive
by a lease, and made anew when another program or an interface took them away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from safekit.bus.endpoint import BusError
from safekit.model.types import Vip
from safekit.net import addresses as net
from safekit.net.addresses import Link
from safekit.net.packets import IP
from safekit.process.frame import Context
from vipd.farm import place, report
from vipd.farm.cable import Cable
from vipd.farm.core import FarmCore, Plan, either, repeat_seconds
from vipd.farm.engine import Engine, EngineError
from vipd.farm.layout import Connection, Layout, Verdicts
from vipd.farm.macs import Macs
from vipd.farm.monitor import RulesetMonitor
from vipd.farm.ruleset import FRESH_SECONDS
from vipd.farm.sockets import open_connections, stay

RESTORE_SECONDS = 0.05
RETRY_SECONDS = 1.0
FOREVER_SECONDS = 3600.0
"""Between two looks at a lease that does not end."""


class Filters:
    """`applied`: the number of the plan that is in the kernel; -1: whatever plan there is must be put there again.
    `core()` gives what decides, None before it is there; `installed(layout)` is called when the filters were made,
    `wake()` when the lease is due at another time."""

    def __init__(
        self,
        context: Context,
        engine: Engine,
        names: tuple[str, ...],
        macs: Macs,
        *,
        settle: float,
        core: Callable[[], FarmCore | None],
        installed: Callable[[Layout], None],
        wake: Callable[[], None],
    ) -> None:
        """settle: seconds until a server that is plugged in again has heard the others."""
        self._context, self._engine, self._names, self._macs = context, engine, names, macs
        self._get_core, self._tell_installed, self._wake = core, installed, wake
        self._groups = len((context.config.vip or Vip()).groups)
        self._cable = Cable(settle, self._lease_again)
        self._monitor: RulesetMonitor | None = None
        self._lock = asyncio.Lock()
        self._restoring = context.beside()
        self._lease: float | None = None
        self._refreshed = self._changed = 0.0
        self.lease_at = 0.0
        self.layout: Layout | None = None
        self.there = False
        self.applied = 0

    # -------------------------------------------------------------------------------- life

    async def install(self, layout: Layout) -> None:
        """Make them for these interfaces, closed unless this server takes part. Raises BusError."""
        async with self._lock:
            self.layout = layout
            plan = self._core().plan()
            kept, held = await stay(layout, open_connections(layout.vips), plan.mine, plan.shared)
            self._macs.share(layout)
            if self._monitor is None:
                self._monitor = RulesetMonitor(layout.table, self._disturbed)
            try:
                # This transaction touches the table whatever the lease is: from it the monitor knows our own changes.
                verdicts = self._verdicts(plan, kept, held)
                self._monitor.learn(lambda: self._engine.install(layout, verdicts, self._lease_now()))
            except EngineError as error:
                self._context.log.event("farm_filter_failed", reason=str(error))
                raise BusError("farm_filter", str(error)) from None
            self.there = True
            self.applied = -1
            self._tell_installed(layout)

    def adopt(self, layout: Layout) -> bool:
        """Get to know those that the life before may have left; whether they still let packets pass."""
        self.layout = layout
        return self._engine.adopt(layout)

    async def stop(self) -> None:
        """Watch them no more; they stay."""
        await self._restoring.end()
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def remove(self) -> None:
        """Take them away. Raises BusError."""
        if self.there:
            try:
                self._engine.remove()
            except EngineError as error:
                raise BusError("farm_filter", str(error)) from None
            finally:
                self.there = False

    def clean(self, layout: Layout) -> None:
        """Remove those that a crash of everything left. Raises BusError."""
        if not self.there:
            self._engine.adopt(layout)
            try:
                self._engine.remove()
            except EngineError as error:
                raise BusError("farm_filter", str(error)) from None

    def _core(self) -> FarmCore:
        core = self._get_core()
        assert core is not None, "observe comes first"
        return core

    # ------------------------------------------------------------------------------- plans

    async def apply(self, plan: Plan) -> tuple[int, ...] | None:
        """Put a plan into the kernel. The buckets, a bitmap for each group, in which connections stay here; None when
        it failed, which is in the log and tried again."""
        async with self._lock:
            layout, macs_known = self.layout, self._macs.version
            buckets: tuple[int, ...] = (0,) * self._groups
            if self.there and layout is not None:
                kept, held = await stay(layout, open_connections(layout.vips), plan.mine, plan.shared)
                lease = self._lease_now()
                try:
                    self._engine.apply(self._verdicts(plan, kept, held), lease)
                    # Accepted between the look and the swap: they must stay too.
                    more, buckets = await stay(layout, open_connections(layout.vips), plan.mine, plan.shared)
                    self._engine.keep(more - kept)
                except EngineError as error:
                    self._context.log.event("farm_filter_failed", reason=str(error))
                    asyncio.get_running_loop().call_later(RETRY_SECONDS, self._disturbed, "a failure")
                    return None
                self._renewed(lease, time.monotonic())
            self._refreshed = time.monotonic()
            if plan.number != self.applied:
                self._changed = self._refreshed
            # A MAC that was learnt meanwhile is not in the filters yet.
            self.applied = plan.number if macs_known == self._macs.version else -1
            return buckets

    def _verdicts(self, plan: Plan, kept: frozenset[Connection], held: tuple[int, ...]) -> Verdicts:
        core = self._core()
        # What was lost a moment ago too: of the connections there, some may not have been in the look at the sockets.
        held = either((held, core.claims_here), self._groups)
        return Verdicts(
            core.taking_part,
            plan.owners,
            plan.mine,
            plan.shared,
            dict(self._macs.known),
            kept,
            held,
            repeat_seconds(core.rules.pulse) if plan.doubt else 0.0,
        )

    def refreshed_before(self, moment: float) -> bool:
        """Whether the last plan was put there before that monotonic time."""
        return self._refreshed <= moment

    def unsettled(self, plan: Plan, now: float) -> bool:
        """Whether connections may have been accepted lately that are known by name, and must stay so."""
        return any(plan.shared) or now - self._changed < FRESH_SECONDS

    # ------------------------------------------------------------------------------- lease

    def renew(self, now: float) -> None:
        """Only for what is in the filters now: never prolong an assignment that was given up."""
        lease = self._lease_now()
        if not self.there or self._lock.locked():
            self.lease_at = now + 0.05
            return
        if now < self.lease_at and lease == self._lease:
            return
        try:
            self._engine.renew(lease)
        except EngineError as error:
            self._disturbed(str(error))
        self._renewed(lease, now)

    def _renewed(self, lease: float | None, now: float) -> None:
        self._lease, self.lease_at = lease, now + (lease / 4 if lease else FOREVER_SECONDS)

    def _lease_now(self) -> float | None:
        return 0.0 if self._cable.unplugged else self._core().lease

    def _lease_again(self) -> None:
        self.lease_at = 0.0
        self._wake()

    # ------------------------------------------------------------------------------- harm

    def _disturbed(self, who: str) -> None:
        """Another program changed our filters: make them anew, a moment later, when it has finished."""
        if self.there and self._get_core() is not None and self.layout is not None:
            self._context.log.event("farm_filter", who=who)
            asyncio.get_running_loop().call_later(RESTORE_SECONDS, self._restore)

    def _restore(self) -> None:
        if self.there and self.layout is not None:
            self._restoring.start(self._install_again(self.layout))

    async def _install_again(self, layout: Layout) -> None:
        # What failed is in the log, and is tried again with the next plan.
        with contextlib.suppress(BusError):
            await self.install(layout)

    def link_changed(self, there: bool, link: Link) -> None:
        """An interface appeared, disappeared, was plugged in or got another MAC: filters hang on interfaces and go
        with them."""
        if self.layout is None or not self.there or not there:
            return
        self._cable.link(self.layout, link)
        for wire in self.layout.wires:
            if wire.device == link.name and (wire.index, wire.mac) != (link.index, link.mac) and link.mac:
                self._restore_on(link)

    def _restore_on(self, link: Link) -> None:
        assert self.layout is not None
        resolved = {entry.addr: ip for entry, ip in self._addresses(self.layout)}
        try:
            self.layout = place.layout(
                self._context.config, self._names, self._context.node, resolved, net.links(), net.addresses()
            )
        except ValueError as error:
            self._context.log.event("farm_filter_failed", reason=f"{link.name}: {error}")
            return
        self._restore()

    def _addresses(self, layout: Layout) -> list[tuple[Any, IP]]:
        entries = [
            entry
            for interface in (self._context.config.vip or Vip()).interfaces
            if interface.kind != "real"
            for entry in interface.addresses
        ]
        return list(zip(entries, layout.vips, strict=False))

    def packets(self) -> dict[str, int]:
        """Packets that each rule has seen since the filters were made, by its label; {} when that cannot be told."""
        if self.layout is None or not self.there:
            return {}
        try:
            found = self._engine.packets()
        except EngineError:
            return {}
        return {rule.label: found.get(number, 0) for number, rule in enumerate(self.layout.rules)}

    def counters(self) -> dict[str, Any]:
        """Packets and connections of each rule. Raises BusError."""
        if self.layout is None or not self.there:
            return {"rules": []}
        try:
            return report.counters(self.layout, self._engine.packets())
        except (EngineError, OSError) as error:
            raise BusError("farm_filter", str(error)) from None
