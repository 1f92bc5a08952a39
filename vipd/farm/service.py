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
from safekit.net.addresses import Link
from safekit.process.frame import Context
from safekit.wire.membership import Pulse, Rules
from vipd.farm import memory, report
from vipd.farm.buckets import Shares
from vipd.farm.core import SETTLE_PULSES, SETTLE_SECONDS, FarmCore, Plan
from vipd.farm.engine import Engine
from vipd.farm.filters import Filters
from vipd.farm.flooding import FloodCheck
from vipd.farm.layout import Layout
from vipd.farm.macs import Macs
from vipd.farm.publisher import Publisher
from vipd.farm.sockets import open_connections
from vipd.farm.talk import Talk
from vipd.farm.wire import Bye, Told, configuration_id

JOIN_SECONDS = 15.0
LEAVE_SECONDS = 10.0
REFRESH_SECONDS = 1.0


class Farm:
    """One module's farm on this server. `moved(lost, met)` is called when who announces the addresses may have
    changed: a server is lost, or two halves of the farm have met."""

    def __init__(self, context: Context, engine: Engine, share: Callable[[Iterable[bytes]], None]) -> None:
        self._context = context
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
        self._talk: Talk | None = None
        self._macs = Macs(self.me, share)
        self._publisher = Publisher(context, lambda: report.resources(self.core, self.groups, self.names, self.me))
        self._set = False
        self._wake = asyncio.Event()
        self._filters = Filters(
            context,
            engine,
            self.names,
            self._macs,
            settle=max(SETTLE_PULSES * config.pulse_ms / 1000, SETTLE_SECONDS),
            core=lambda: self.core,
            installed=self._filters_made,
            wake=self._wake.set,
        )
        self._dirty = asyncio.Event()
        self._done = asyncio.Condition()
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
        self._filters.applied = 0
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
    def layout(self) -> Layout | None:
        """Where the filters are, or were."""
        return self._filters.layout

    @property
    def installed(self) -> bool:
        """Whether the filters are there."""
        return self._filters.there

    async def settled(self) -> None:
        """Wait until the others, if there are any, have been heard."""
        core = self._core()
        rules = core.rules
        deadline = time.monotonic() + 2 * rules.pulse + 0.2
        while not core.membership.heard and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def install(self, layout: Layout) -> None:
        """Make the filters for these interfaces, closed unless this server takes part. Raises BusError."""
        await self._filters.install(layout)

    def _filters_made(self, layout: Layout) -> None:
        self._set = True
        self._flood_check.watch(layout)
        self._dirty.set()
        self._wake.set()
        self.remember()

    async def resume(self, layout: Layout) -> None:
        """After a restart of this process: go on where the life before was, if its filters still work."""
        remembered = memory.load(self._path)
        adopted = self._filters.adopt(layout)
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
        await self._filters.stop()
        if self._talk is not None:
            self._talk.close()
            self._talk = None
        if remove:
            self._filters.remove()
            self.core = None
            self._logged = ()
            await self._publisher.tell(report.resources(None, self.groups, self.names, self.me))
            self.remember()

    async def clean(self, layout: Layout | None) -> None:
        """At start: remove filters that a crash of everything left. Raises BusError."""
        if layout is not None:
            self._filters.clean(layout)

    # ------------------------------------------------------------------------------ orders

    async def join(self) -> dict[str, Any]:
        """Take part. Answered when the share of this server is in its filters.

        Raises BusError('farm_not_set') before vip_set, 'farm_timeout' when it is not done in JOIN_SECONDS;
        it then goes on in the background.
        """
        if not self.installed:
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
            return condition(plan) and (plan.number == self._filters.applied)

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
                self._filters.applied = -1
            core.receive(message.pulse, message.kept, now)
        self._kick()

    def _send(self, pulse: Pulse | None) -> None:
        if pulse is not None and self.core is not None and self._talk is not None:
            self._talk.send(Told(pulse, self.core.claims_here, self._macs.with_ours(self.layout)))

    # ------------------------------------------------------------------------------- loops

    def _kick(self) -> None:
        """Something happened: look at the plan and at the clock again."""
        self._wake.set()
        if self._core().plan().number != self._filters.applied:
            self._dirty.set()

    async def _drive(self) -> None:
        """Time passes: pulses, judgements, the lease of the filters."""
        core = self._core()
        while True:
            pause = core.next_wakeup() - time.monotonic()
            if self.installed:
                pause = min(pause, self._filters.lease_at - time.monotonic())
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(pause, 0.0005)):
                    await self._wake.wait()
            self._wake.clear()
            now = time.monotonic()
            if now >= core.next_wakeup():
                self._send(core.tick(now))
            report.log_news(self._context.log, self.names, core.take_news(), core.membership.take_changes())
            if core.plan().number != self._filters.applied:
                self._dirty.set()
            else:
                self._filters.renew(now)
            unsettled = self._filters.unsettled(core.plan(), now) or any(core.claims_here)
            if self._filters.refreshed_before(now - REFRESH_SECONDS) and unsettled:
                self._dirty.set()

    async def _put_into_effect(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._apply()
            async with self._done:
                self._done.notify_all()

    async def _apply(self) -> None:
        core = self._core()
        plan = core.plan()
        buckets = await self._filters.apply(plan)
        if buckets is None:
            return
        self._send(core.confirm(plan.number, buckets, time.monotonic()))
        self._wake.set()
        if core.plan().number != self._filters.applied:
            self._dirty.set()
        elif plan.final:
            self._report(plan)

    def link_changed(self, there: bool, link: Link) -> None:
        """The kernel tells of an interface."""
        self._filters.link_changed(there, link)

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
        return self._filters.counters()

    def figures(self) -> dict[str, Any]:
        """For monitoring, see safekit.disk.stats. Connections are not counted for it: there may be many."""
        return {"packets": self._filters.packets(), "farm_datagrams": self.datagrams()}

    def status(self) -> dict[str, Any]:
        """What the tools show."""
        shown = report.status(
            self._context.node, self.names, self.groups, self.core, self.layout, self._filters.applied
        )
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
