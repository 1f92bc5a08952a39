"""What a module follows while it runs: its own configuration (chapter 13, dynamic), the cluster's (12.2), and the
addresses of names (9.3)."""

from __future__ import annotations

import asyncio
import time

from heart.core import plans
from heart.core.events import Configured, Ordered
from heart.core.values import Command, Role
from heart.shell import configured
from heart.shell.shell import Shell
from safekit.bus.asking import Ask, Done
from safekit.bus.endpoint import BusError
from safekit.bus.requests import nfsadmin, vipd
from safekit.disk.files import write_atomic
from safekit.model.checkers import Checker, changed_checkers
from safekit.model.codec import to_json
from safekit.model.types import ModuleConfig
from safekit.process.frame import load_cluster, load_module
from safekit.process.supervision import module_programs, write_configuration
from safekit.wire.keys import wire_keys

TELL_SECONDS = 10.0
IDLE_LOOK = 0.05
CLUSTER_FILE = "cluster.json"


class Following:
    """One per heart, over its shell."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def reload(self) -> None:
        """A dynamic configuration, another cluster configuration, or names that may have other addresses now.

        What a running module cannot become is refused when it is a configuration of the module (Unusable); when the
        cluster has changed, the module stops: the other server hears of it on the links as they were.
        """
        shell = self._shell
        async with shell.reloading:
            context, former = shell.context, shell.plan
            config, cluster = load_module(context.paths), load_cluster()
            before, elsewhere = context.config, cluster != context.cluster
            try:
                plan = configured.successor(config, cluster, context.node, former, reconfigured=config != before)
            except configured.Unusable as error:
                if not elsewhere:
                    raise
                self.leave_cluster(str(error))
                return
            context.config, context.cluster = config, cluster
            if elsewhere:
                self.keep_cluster()
                context.log.event("cluster_taken", nodes=", ".join(cluster.node_names))
            changed = changed_checkers(before, config, former.checkers, plan.checkers)
            shell.scripts.user = config.user
            if shell.heartbeats.rotation.look(wire_keys(context.module), time.monotonic()):
                shell.heartbeats.rekey()
            shell.publish_encryption()
            shell.plan = plan
            await shell.heartbeats.open()
            shell.neighbours.due.set()
            if plan.setup != former.setup or changed:
                shell.feed(Configured(plan.setup, tuple(checker.resource for checker in changed)))
            await self._replace_processes(before, changed)
            await self._tell_others(plan.members != former.members)

    def leave_cluster(self, reason: str) -> None:
        """The cluster is not what the module needs any more: an orderly stop (guide 12.2)."""
        state = self._shell.state
        if state.stopping or (state.role is Role.STOP and not state.intent):
            return
        self._shell.context.log.event("cluster_unusable", reason=reason)
        self._shell.feed(Ordered(Command("stop", "SYSTEM", False)))

    def keep_cluster(self) -> None:
        """What the module runs with: a successor that cannot use what is configured then must stop it in order."""
        context = self._shell.context
        path, data = context.paths.var / CLUSTER_FILE, to_json(context.cluster).encode()
        try:
            if not path.exists() or path.read_bytes() != data:
                write_atomic(path, data, durable=False)
            self._shell.complaints.over(("cluster", ""))
        except OSError as error:
            # a full disk ends no heart
            self._shell.complaints.say(("cluster", ""), f"{path} cannot be written: {error.strerror}")

    async def _tell_others(self, other_members: bool) -> None:
        """nfsadmin and vipd follow; they read the configurations themselves."""
        context, processes = self._shell.context, self._shell.effects.processes
        wanted: list[Ask[Done]] = [nfsadmin.Reconfigure()] if context.config.rfs is not None else []
        wanted += [vipd.Reload()] if context.config.vip is not None and not other_members else []
        for ask in wanted:
            if not await processes.runs(ask.process):
                continue  # it reads them when it is started
            complaint = (ask.process, ask.op)
            try:
                await context.bus.ask(context.module, ask, TELL_SECONDS)
            except BusError as error:
                self._shell.complaints.say(complaint, f"{ask.process} did not take the configuration up: {error.text}")
            else:
                self._shell.complaints.over(complaint)
        if other_members and context.config.vip is not None:
            self._shell.start_task(self._renew_vipd())

    async def _renew_vipd(self) -> None:
        """Who is in the farm has changed: vipd begins anew, and goes on where it was (its filters stay)."""
        while self._shell.state.busy_step is not None:
            await asyncio.sleep(IDLE_LOOK)  # vipd may be at work for heart
        if self._shell.exit is None:
            await self._shell.effects.processes.renew("vipd")

    async def _replace_processes(self, before: ModuleConfig, changed: tuple[Checker, ...]) -> None:
        """The checkers and errd of a running module follow its configuration; the others are not dynamic."""
        shell = self._shell
        config, processes, s = shell.context.config, shell.effects.processes, shell.state
        if (before.check, before.errd) == (config.check, config.errd) and not changed:
            return
        if config.errd is None and before.errd is not None:
            await processes.stop_process("errd")
        programs = module_programs(config, shell.plan.checkers)
        write_configuration(shell.context.module, programs, {"SAFENODE": shell.context.node})
        active = ("pre", *plans.phases(s.role)) if s.role is not Role.STOP else ()
        checkers_on = s.resource("usersetting.checker", "on") != "off"
        await processes.replace_checkers(shell.plan.checkers, changed, active, running=checkers_on)
        if config.errd is not None and before.errd != config.errd:
            await processes.replace_errd(active)
