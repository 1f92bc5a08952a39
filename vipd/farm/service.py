"""The farm in vipd: membership on the wire, decisions into packet filters, news to the log and to heart.

Everything that changes the filters goes through one task, one plan after the other; the membership goes on
meanwhile. An order of heart is answered when its effect is in the filters.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from safekit.bus.endpoint import BusError
from safekit.model.types import Farm as FarmConfig
from safekit.model.types import Vip
from safekit.net import addresses as net
from safekit.net.addresses import Link
from safekit.net.packets import IP
from safekit.process.frame import Context
from safekit.wire.membership import Pulse, Rules
from vipd.farm import memory, place, report
from vipd.farm.buckets import Shares
from vipd.farm.cable import Cable
from vipd.farm.core import SETTLE_PULSES, SETTLE_SECONDS, FarmCore, Plan, either, repeat_seconds
from vipd.farm.engine import Engine, EngineError
from vipd.farm.flooding import FloodCheck
from vipd.farm.layout import Connection, Layout, Verdicts
from vipd.farm.macs import Macs
from vipd.farm.monitor import RulesetMonitor
from vipd.farm.publisher import Publisher
from vipd.farm.ruleset import FRESH_SECONDS
from vipd.farm.sockets import open_connections, stay
from vipd.farm.talk import Talk
from vipd.farm.wire import Bye, Told, configuration_id

JOIN_SECONDS = 15.0
LEAVE_SECONDS = 10.0
REFRESH_SECONDS = 1.0
RESTORE_SECONDS = 0.05


class Farm:
    """One module's farm on this server. `moved(lost, met)` is called when who announces the addresses may have
    changed: a server is lost, or two halves of the farm have met."""

    def __init__(self, context: Context, engine: Engine, share: Callable[[Iterable[bytes]], None]) -> None:
        self._context, self._engine = context, engine
        config = context.config.farm
        assert config is not None, "a farm module has <farm>"
        self._config: FarmConfig = config
        self.names = tuple(sorted(context.config.nodes(context.cluster)))
        if context.node not in self.names:
            raise ValueError(f"{context.node} is not on the lans of <farm> ({', '.join(self.names)}): correct <farm>")
        self.me = self.names.index(context.node)
        self.groups = (context.config.vip or Vip()).groups
        self._path = context.paths.var / memory.FILE
        self._flood_check = FloodCheck(
            context.log, self.names, configuration_id(context.config, self.names, context.cluster)
        )
        self.core: FarmCore | None = None
        self.layout: Layout | None = None
        self._talk: Talk | None = None
        self._monitor: RulesetMonitor | None = None
        self._macs = Macs(self.me, share)
        self._publisher = Publisher(context, lambda: report.resources(self.core, self.groups, len(self.names), self.me))
        self._installed = False
        self._set = False
        self._applied = 0
        self._lease: float | None = None
        self._lease_at = 0.0
        pause = max(SETTLE_PULSES * config.pulse_ms / 1000, SETTLE_SECONDS)
        self._cable = Cable(pause, self._lease_again)
        self._refreshed = self._changed = 0.0
        self._wake = asyncio.Event()
        self._dirty = asyncio.Event()
        self._done = asyncio.Condition()
        self._lock = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._logged: tuple[object, ...] = ()
        self.moved: Callable[[bool, bool], None] = lambda lost, met: None

    # -------------------------------------------------------------------------------- life

    async def observe(self, *, joined: bool = False, resumed: tuple[Any, ...] = ()) -> None:
        """Become a member, one that takes no part yet. Repeated: nothing.

        Raises BusError('farm_key') when the keys cannot be read.
        """
        if self.core is not None:
            return
        settings = self._config
        talk = Talk(self._context, settings.port, self.names, len(self.groups), self._heard)
        shares = [self._shares(index) for index in range(len(self.groups))]
        rules = Rules(len(self.names), self.me, settings.pulse_ms / 1000, settings.mlost_count, settings.slost_count)
        self.core = FarmCore(rules, shares, talk.epoch, time.monotonic(), joined=joined, resumed=resumed)
        self._talk = talk
        await talk.open()
        self._applied = 0
        ours = (self._drive(), self._put_into_effect(), self._publisher.run(), talk.follow_keys())
        self._tasks = [asyncio.get_running_loop().create_task(work) for work in ours]

    async def follow(self) -> None:
        """The lans of the cluster have changed, or the addresses of names may have: who is in the farm has not."""
        if self._talk is not None:
            await self._talk.follow_lans()

    def _shares(self, group: int) -> Shares:
        hosts = self.groups[group].hosts
        powers = {host.name: host.power for host in hosts} if hosts else dict.fromkeys(self.names, 1)
        return Shares({number: powers[name] for number, name in enumerate(self.names) if name in powers})

    @property
    def installed(self) -> bool:
        """Whether the filters are there."""
        return self._installed

    async def settled(self) -> None:
        """Wait until the others, if there are any, have been heard."""
        core = self._core()
        rules = core.rules
        deadline = time.monotonic() + 2 * rules.pulse + 0.2
        while not core.membership.heard and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def install(self, layout: Layout) -> None:
        """Make the filters for these interfaces, closed unless this server takes part. Raises BusError."""
        async with self._lock:
            self.layout = layout
            core = self._core()
            plan = core.plan()
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
            self._installed = self._set = True
            self._flood_check.watch(layout)
            self._applied = -1
        self._dirty.set()
        self._wake.set()
        self.remember()

    async def resume(self, layout: Layout) -> None:
        """After a restart of this process: go on where the life before was, if its filters still work."""
        remembered = memory.load(self._path)
        self.layout = layout
        adopted = self._engine.adopt(layout)
        await self.observe(joined=remembered.joined, resumed=remembered.rows_of(self.names) if adopted else ())
        if adopted:
            self._context.log.event("farm_resumed")
        await self.install(layout)

    async def stop(self, *, remove: bool) -> None:
        """Say goodbye and take the filters away, or leave everything as it is."""
        if remove:
            if self.core is not None and self._talk is not None:
                self._talk.send(Bye(self.me, self.core.membership.incarnation))
            self._set = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self._flood_check.close()
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self._talk is not None:
            self._talk.close()
            self._talk = None
        if remove and self._installed:
            try:
                self._engine.remove()
            except EngineError as error:
                raise BusError("farm_filter", str(error)) from None
            finally:
                self._installed = False
        if remove:
            self.core = None
            self._logged = ()
            await self._publisher.tell(report.resources(None, self.groups, len(self.names), self.me))
            self.remember()

    async def clean(self, layout: Layout | None) -> None:
        """At start: remove filters that a crash of everything left. Raises BusError."""
        if layout is not None and not self._installed:
            self._engine.adopt(layout)
            try:
                self._engine.remove()
            except EngineError as error:
                raise BusError("farm_filter", str(error)) from None

    # ------------------------------------------------------------------------------ orders

    async def join(self) -> dict[str, Any]:
        """Take part. Answered when the share of this server is in its filters.

        Raises BusError('farm_not_set') before vip_set, 'farm_timeout' when it is not done in JOIN_SECONDS;
        it then goes on in the background.
        """
        if not self._installed:
            raise BusError("farm_not_set", "farm_join: the virtual addresses are not set; order vip_set first")
        core = self._core()
        core.join(time.monotonic())
        self.remember()
        self._kick()
        await self._until(lambda plan: core.taking_part and plan.final, JOIN_SECONDS, "farm_join")
        return self.status()

    async def leave(self) -> dict[str, Any]:
        """Take no part any more. Answered when the others have taken over; open connections stay here.

        Raises BusError('farm_timeout').
        """
        if self.core is None:
            return {"connections": 0}
        core = self.core
        core.leave(time.monotonic())
        self.remember()
        self._kick()
        await self._until(lambda plan: not core.taking_part and plan.final, LEAVE_SECONDS, "farm_leave")
        layout = self.layout
        return {"connections": len(open_connections(layout.vips)) if layout is not None else 0}

    async def _until(self, condition: Callable[[Plan], bool], seconds: float, what: str) -> None:
        core = self._core()

        def reached() -> bool:
            plan = core.plan()
            return condition(plan) and (plan.number == self._applied)

        try:
            async with asyncio.timeout(seconds), self._done:
                await self._done.wait_for(reached)
        except TimeoutError:
            raise BusError(
                "farm_timeout", f"{what} is not done after {seconds:g} s; it goes on, see the log of the module"
            ) from None

    # ----------------------------------------------------------------------------- network

    def _heard(self, message: Told | Bye) -> None:
        core, now = self.core, time.monotonic()
        if core is None or self._talk is None:
            return
        if isinstance(message, Bye):
            core.depart(message.node, message.incarnation, now)
        else:
            if self._macs.learn(message.pulse.sender, message.macs):
                self._macs.share(self.layout)
                self._applied = -1
            core.receive(message.pulse, message.kept, now)
        self._kick()

    def _send(self, pulse: Pulse | None) -> None:
        if pulse is not None and self.core is not None and self._talk is not None:
            self._talk.send(Told(pulse, self.core.claims_here, self._macs.with_ours(self.layout)))

    # ------------------------------------------------------------------------------- loops

    def _kick(self) -> None:
        """Something happened: look at the plan and at the clock again."""
        self._wake.set()
        if self._core().plan().number != self._applied:
            self._dirty.set()

    async def _drive(self) -> None:
        """Time passes: pulses, judgements, the lease of the filters."""
        core = self._core()
        while True:
            pause = core.next_wakeup() - time.monotonic()
            if self._installed:
                pause = min(pause, self._lease_at - time.monotonic())
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(pause, 0.0005)):
                    await self._wake.wait()
            self._wake.clear()
            now = time.monotonic()
            if now >= core.next_wakeup():
                self._send(core.tick(now))
            report.log_news(self._context.log, self.names, core.take_news(), core.membership.take_changes())
            if core.plan().number != self._applied:
                self._dirty.set()
            else:
                self._renew(now)
            if now - self._refreshed >= REFRESH_SECONDS and (self._unsettled(now) or any(core.claims_here)):
                self._dirty.set()

    def _unsettled(self, now: float) -> bool:
        """Whether connections may have been accepted lately that are known by name, and must stay so."""
        return any(self._core().plan().shared) or now - self._changed < FRESH_SECONDS

    def _renew(self, now: float) -> None:
        """Only for what is in the filters now: never prolong an assignment that was given up."""
        lease = self._lease_now()
        if not self._installed or self._lock.locked():
            self._lease_at = now + 0.05
            return
        if now < self._lease_at and lease == self._lease:
            return
        try:
            self._engine.renew(lease)
        except EngineError as error:
            self._disturbed(str(error))
        self._lease = lease
        self._lease_at = now + (lease / 4 if lease else 3600.0)

    async def _put_into_effect(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            async with self._lock:
                await self._apply()
            async with self._done:
                self._done.notify_all()

    async def _apply(self) -> None:
        core, layout = self._core(), self.layout
        plan = core.plan()
        macs_known = self._macs.version
        buckets: tuple[int, ...] = (0,) * len(self.groups)
        if self._installed and layout is not None:
            kept, held = await stay(layout, open_connections(layout.vips), plan.mine, plan.shared)
            lease = self._lease_now()
            try:
                self._engine.apply(self._verdicts(plan, kept, held), lease)
                # Accepted between the look and the swap: they must stay too.
                more, buckets = await stay(layout, open_connections(layout.vips), plan.mine, plan.shared)
                self._engine.keep(more - kept)
            except EngineError as error:
                self._context.log.event("farm_filter_failed", reason=str(error))
                asyncio.get_running_loop().call_later(1.0, self._disturbed, "a failure")
                return
            self._lease, self._lease_at = lease, time.monotonic() + (lease / 4 if lease else 3600.0)
        self._refreshed = time.monotonic()
        if plan.number != self._applied:
            self._changed = self._refreshed
        # A MAC that was learnt meanwhile is not in the filters yet.
        self._applied = plan.number if macs_known == self._macs.version else -1
        self._send(core.confirm(plan.number, buckets, time.monotonic()))
        self._wake.set()
        if core.plan().number != self._applied:
            self._dirty.set()
        elif plan.final:
            self._report(plan)

    def _verdicts(self, plan: Plan, kept: frozenset[Connection], held: tuple[int, ...]) -> Verdicts:
        core = self._core()
        # What was lost a moment ago too: of the connections there, some may not have been in the look at the sockets.
        held = either((held, core.claims_here), len(self.groups))
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

    def _disturbed(self, who: str) -> None:
        """Another program changed our filters: make them anew, a moment later, when it has finished."""
        if self._installed and self.core is not None and self.layout is not None:
            self._context.log.event("farm_filter", who=who)
            asyncio.get_running_loop().call_later(RESTORE_SECONDS, self._restore)

    def _restore(self) -> None:
        if self._installed and self.layout is not None:
            self._tasks = [task for task in self._tasks if not task.done()]
            self._tasks.append(asyncio.get_running_loop().create_task(self._install_again(self.layout)))

    async def _install_again(self, layout: Layout) -> None:
        # What failed is in the log, and is tried again with the next plan.
        with contextlib.suppress(BusError):
            await self.install(layout)

    def link_changed(self, there: bool, link: Link) -> None:
        """An interface appeared, disappeared, was plugged in or got another MAC: filters hang on interfaces and go
        with them."""
        if self.layout is None or not self._installed or not there:
            return
        self._cable.link(self.layout, link)
        for wire in self.layout.wires:
            if wire.device == link.name and (wire.index, wire.mac) != (link.index, link.mac) and link.mac:
                self._restore_on(link)

    def _lease_again(self) -> None:
        self._lease_at = 0.0
        self._wake.set()

    def _lease_now(self) -> float | None:
        return 0.0 if self._cable.unplugged else self._core().lease

    def _restore_on(self, link: Link) -> None:
        assert self.layout is not None
        resolved = {entry.addr: ip for entry, ip in self._addresses()}
        try:
            self.layout = place.layout(
                self._context.config, self.names, self._context.node, resolved, net.links(), net.addresses()
            )
        except ValueError as error:
            self._context.log.event("farm_filter_failed", reason=f"{link.name}: {error}")
            return
        self._restore()

    def _addresses(self) -> list[tuple[Any, IP]]:
        assert self.layout is not None
        entries = [
            entry
            for interface in (self._context.config.vip or Vip()).interfaces
            if interface.kind != "real"
            for entry in interface.addresses
        ]
        return list(zip(entries, self.layout.vips, strict=False))

    # ---------------------------------------------------------------------------- reporting

    def _report(self, plan: Plan) -> None:
        """A final assignment is in the filters."""
        core = self._core()
        seen = (plan.participants, plan.owners, core.taking_part)
        if seen != self._logged:
            if core.taking_part:
                report.log_assignment(self._context.log, self.names, self.groups, plan, self.me)
            before = set(self._logged[0]) if self._logged else set()  # type: ignore[call-overload]
            self._logged = seen
            self._publisher.changed()
            self.moved(bool(before - set(plan.participants)), core.take_meeting())
        self.remember()

    def counters(self) -> dict[str, Any]:
        """Packets and connections of each rule. Raises BusError."""
        if self.layout is None or not self._installed:
            return {"rules": []}
        try:
            return report.counters(self.layout, self._engine.packets())
        except (EngineError, OSError) as error:
            raise BusError("farm_filter", str(error)) from None

    def status(self) -> dict[str, Any]:
        """What the tools show."""
        shown = report.status(self._context.node, self.names, self.groups, self.core, self.layout, self._applied)
        return {**shown, "flooding": self._flood_check.problems()}

    def datagrams(self) -> dict[str, int]:
        """What was sent, accepted and refused."""
        return {} if self._talk is None else self._talk.datagrams()

    def announces(self) -> bool:
        """Whether this server tells the network about the addresses: one of those who take part does."""
        return self.core is not None and self.core.taking_part and self.core.plan().participants[:1] == (self.me,)

    def remember(self) -> None:
        """Write down what the next life of this process needs."""
        core = self.core
        rows: tuple[Any, ...] = ()
        if core is not None:
            heard = (core.membership.row(n) for n in range(len(self.names)) if core.membership.heard >> n & 1)
            rows = tuple(row for row in heard if row is not None)
        joined = core is not None and core.wants_part
        try:
            memory.save(self._path, memory.Memory(self._set, joined, rows, self.status(), self.names))
        except OSError as error:
            self._context.log.debug(f"{self._path}: {error.strerror}; a restarted vipd starts afresh")

    def _core(self) -> FarmCore:
        assert self.core is not None, "observe comes first"
        return self.core
