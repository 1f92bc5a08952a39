"""What safeadmin answers on the local bus, and the order of its start and stop (guide 9.2 to 9.4, 10.1).

What it can be asked stands in safekit.bus.requests.safeadmin.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import replace

from safeadmin.actions import Refusal, Way, plan
from safeadmin.adminlog import AdminLog
from safeadmin.boot import BootRecord
from safeadmin.joined import Joined
from safeadmin.mapper import Mapper
from safeadmin.modules import Installed, Registry
from safeadmin.ownport import open_own_port
from safeadmin.processes import find_all
from safeadmin.runtime import ModuleRuntime
from safekit.bus.asking import Document
from safekit.bus.asking import Service as Asked
from safekit.bus.endpoint import ADMIN, BusError
from safekit.bus.requests import heart
from safekit.bus.requests.safeadmin.modules import Boot, BootSetting, Changed, Control, GetState, SetResource, Taken
from safekit.bus.requests.safeadmin.node import (
    GetMembers,
    GetOtherServer,
    OtherServer,
    Reload,
    Reloaded,
    Shutdown,
    Stopping,
)
from safekit.bus.requests.safeadmin.processes import Ended, ListProcesses, Lookup, Place, Processes, Register, Respawn
from safekit.disk.files import locked, write_atomic
from safekit.disk.paths import ModulePaths, safevar, valid_module_name
from safekit.disk.resources import ResourceWriter, valid_name
from safekit.log.module import ModuleLog
from safekit.model.types import User
from safekit.process.tasks import Beside, told

SET_SECONDS = 5.0
FACTS_SECONDS = 2.0
HEART_SECONDS = 30.0
REGISTRATION_GRACE = 1.5
"""A young safeadmin has asked the processes to register and does not know them all yet."""
STOP_MARGIN = 60.0


class Service:
    """The daemon without its process: endpoint, modules, cluster."""

    def __init__(self, log: AdminLog) -> None:
        self.log = log
        self.mapper = Mapper()
        self.registry = Registry()
        self.runtimes: dict[str, ModuleRuntime] = {}
        self.joined = Joined(log, self.registry, self._running)
        self._ports = safevar() / "mapper.ports"
        self._started = time.monotonic()
        self._record = BootRecord(safevar())
        self._beside = Beside(lambda error: log.error(f"defect in safeadmin: {told(error)}"))
        self._asked = Asked(
            ADMIN,
            [
                (Register, self._register),
                (Lookup, self._lookup),
                (ListProcesses, self._list_processes),
                (GetState, self._state),
                (GetMembers, self._members),
                (GetOtherServer, self._other_server),
                (Control, self._control),
                (SetResource, self._set),
                (Boot, self._boot),
                (Shutdown, self._shutdown),
                (Reload, self._reload),
                (Respawn, self._respawn),
                (Ended, self._ended),
            ],
        )

    @property
    def node(self) -> str:
        """The name of this server in its cluster."""
        return self.joined.node

    # Life

    async def start(self) -> None:
        """Take the port, find the modules that run, join the cluster. Raises OSError when the port is taken,
        BusError when the bus key cannot be read."""
        self.bus = await open_own_port(self._asked.handle, self.log)
        self._ask_to_register()
        for name, members in find_all().items():
            self._runtime(name).adopt(members)
        await self.reload()
        self._beside.start(self.joined.follow_facts())

    def _ask_to_register(self) -> None:
        """Whoever registered with the safeadmin before this one, at the port that it had then."""
        with contextlib.suppress(OSError, ValueError):
            for word in self._ports.read_text(encoding="ascii").split():
                if 0 < int(word) < 65536:
                    self.bus.ask_to_register(int(word))

    def _remember_ports(self) -> None:
        ports = " ".join(str(entry.port) for entry in self.mapper.entries())
        try:
            write_atomic(self._ports, ports.encode(), durable=False)
        except OSError as error:
            self.log.error(f"{self._ports}: {error.strerror}; a restarted safeadmin finds the processes later")

    async def start_modules(self) -> None:
        """After a boot: start what is set to boot on. After a crash of safeadmin: take up what lost its
        supervisord and heart meanwhile."""
        if not self._record.is_new():
            for name in self.registry.names():
                await self._runtime(name).rescue()
            return
        await asyncio.gather(*(self._boot_start(m) for m in self.registry.all() if m.boot))
        try:
            self._record.served()
        except OSError as error:
            self.log.error(f"{self._record.path}: {error.strerror}; a restart of safeadmin will count as a boot")

    async def _boot_start(self, module: Installed) -> None:
        runtime = self._runtime(module.name)
        if runtime.running:
            return
        self.log.info(f"module {module.name} is started: its boot setting is on")
        try:
            await self._perform(module.name, heart.Control("start", "boot"))
        except BusError as error:
            self.log.error(f"module {module.name} was not started at boot: {error.text}")
            ModuleLog(module.name, ADMIN, self.node).event("internal", text=f"not started at boot: {error.text}")

    async def stop_modules(self, who: str = "SYSTEM") -> float:
        """Stop all running modules in order, each within its bound; the seconds it took."""
        began = time.monotonic()
        running = [runtime for runtime in self.runtimes.values() if runtime.running]
        await asyncio.gather(*(runtime.stop("shutdown", who, self._bound(runtime.name)) for runtime in running))
        return time.monotonic() - began

    async def _stop_all(self, who: str) -> None:
        await self.stop_modules(who)

    def stop_bound(self) -> float:
        """The longest that stop_modules may take, in seconds."""
        return max((self._bound(r.name) for r in self.runtimes.values() if r.running), default=0.0)

    def _bound(self, name: str) -> float:
        module = self.registry.get(name)
        user = (module.config.user if module is not None and module.config is not None else None) or User()
        return user.nicestoptimeout + user.forcestoptimeout + STOP_MARGIN

    async def close(self, *, orderly: bool) -> None:
        """Leave. orderly: the modules were stopped, so the next start is a boot."""
        self._beside.cancel()
        for runtime in self.runtimes.values():
            runtime.close()
        await self.joined.close()
        await self.bus.close()
        if orderly:
            try:
                self._record.forget()
            except OSError as error:
                self.log.error(f"{self._record.path}: {error.strerror}; modules will not start at boot")

    # Cluster

    async def reload(self) -> None:
        """Follow the cluster configuration as it is now; the modules that run follow it too."""
        if await self.joined.reload():
            self._reload_hearts()

    def _reload_hearts(self) -> None:
        """Modules that run take up another cluster configuration, and look names up again (guide 9.3, 12.2)."""
        for name, runtime in self.runtimes.items():
            if runtime.running:
                self._beside.start(self._reload_heart(name))

    async def _reload_heart(self, name: str) -> None:
        try:
            # A heart that was just restarted is found again.
            await self.bus.ask(name, heart.Reload(), HEART_SECONDS)
        except BusError as error:
            self.log.error(f"module {name} did not take the cluster configuration up: {error.text}")

    # Modules

    def _running(self, name: str) -> bool:
        runtime = self.runtimes.get(name)
        return runtime is not None and runtime.running

    def _runtime(self, name: str) -> ModuleRuntime:
        if name not in self.runtimes:
            self.runtimes[name] = ModuleRuntime(
                name, self.node, self.registry, self.bus, self.mapper, self.joined.changed
            )
        return self.runtimes[name]

    async def _perform(self, name: str, order: heart.Control) -> Taken:
        """Do what control asks. Raises BusError."""
        module, known = self.registry.get(name), self.runtimes.get(name)
        facts = {
            "installed": module is not None,
            "configured": module is not None and module.config is not None,
            "in_cluster": bool(self.joined),
            "running": known is not None and known.running and not known.ending,
            "mode": module.mode if module is not None else "",
            "problem": module.problem if module is not None else "",
        }
        way = plan(order.action, name, facts)
        if isinstance(way, Refusal):
            text = f"{way.text} ({self.joined.problem})" if way.code == "no_cluster" else way.text
            raise BusError(way.code, text)
        runtime = self._runtime(name)
        if runtime.forcing and way is not Way.FORCE:
            raise BusError("stopping", f"module {name} is being stopped by force; safekit waitstop -m {name}")
        if way is Way.NOTHING:
            return Taken(note=f"module {name} is stopped already")
        if way is Way.FORCE:
            await runtime.forcestop(order)
        elif way is Way.SPAWN:
            # Equivalent to stop, then start (guide 9.4).
            await runtime.start(replace(order, action="start") if order.action == "stopstart" else order)
        else:
            await runtime.forward(order)
        return Taken()

    # Operations

    def _module(self, name: str) -> str:
        """A name that may be used in paths. Raises BusError."""
        if not valid_module_name(name):
            raise BusError("bad_request", f"{name!r} is not a module name; safekit module list")
        return name

    async def _register(self, ask: Register) -> None:
        try:
            entry = self.mapper.register(ask.name, ask.port, ask.pid, ask.life)
        except ValueError as error:
            raise BusError("bad_request", str(error)) from None
        if entry is not None:
            self._remember_ports()
        if entry is not None and ask.name.endswith("/heart"):
            self._runtime(ask.name.partition("/")[0]).heart_registered(entry.pid, entry.born)

    async def _lookup(self, ask: Lookup) -> Place:
        if ask.name == ADMIN:
            return Place(self.bus.port, os.getpid(), self.bus.incarnation)
        entry = self.mapper.lookup(ask.name)
        while entry is None and time.monotonic() - self._started < REGISTRATION_GRACE:
            await asyncio.sleep(0.02)
            entry = self.mapper.lookup(ask.name)
        return Place(0, 0) if entry is None else Place(entry.port, entry.pid, entry.incarnation)

    async def _list_processes(self, _: ListProcesses) -> Processes:
        return Processes({e.name: {"port": e.port, "pid": e.pid} for e in self.mapper.entries()})

    async def _state(self, _: GetState) -> Document:
        modules, cluster = {}, {}
        for module in self.registry.all():
            runtime = self.runtimes.get(module.name)
            modules[module.name] = {
                "id": module.id,
                "mode": module.mode,
                "configured": module.config is not None,
                "running": self._running(module.name),
                "heart": runtime is not None and runtime.heart,
                "boot": "on" if module.boot else "off",
                "signature": module.config.signature if module.config is not None else "",
            }
            cluster[module.name] = self.joined.status(module)
        return {"node": self.node, "modules": modules, "cluster": cluster, "cluster_problem": self.joined.problem}

    async def _members(self, _: GetMembers) -> Document:
        return self.joined.members()

    async def _other_server(self, ask: GetOtherServer) -> OtherServer:
        return self.joined.servers_of(self.registry.get(self._module(ask.module)))

    async def _control(self, ask: Control) -> Taken:
        order = heart.Control(ask.action, ask.who, ask.identity, ask.nosync, ask.fullsync, ask.value, ask.args)
        return await self._perform(self._module(ask.module), order)

    async def _set(self, ask: SetResource) -> Changed:
        name, value = self._module(ask.module), ask.value
        if not valid_name(ask.resource):
            raise BusError("bad_request", f"{ask.resource!r} is not a resource name; write class.id")
        if not 0 < len(value) <= 256 or value.split() != [value]:
            raise BusError("bad_request", f"{value!r} is not a resource value; write one word")
        if self.registry.get(name) is None:
            raise BusError("unknown_module", f"module {name} is not installed on this server; safekit module list")
        if self._running(name):
            told = await self.bus.ask(name, heart.SetResource(ask.resource, value, ask.who), SET_SECONDS)
            return Changed(told.changed)
        return Changed(await asyncio.to_thread(self._set_stopped, name, ask.resource, value, ask.who))

    def _set_stopped(self, name: str, resource: str, value: str, who: str) -> bool:
        paths = ModulePaths(name)
        try:
            paths.var.mkdir(mode=0o770, parents=True, exist_ok=True)
            with locked(paths.var / "resources.lock"):
                writer = ResourceWriter(paths.resources)
                changed = writer.set(resource, value, who)
                writer.flush()
        except ValueError as error:
            raise BusError("bad_request", str(error)) from None
        except OSError as error:
            raise BusError("cannot_write", f"{paths.resources}: {error.strerror}; free space or rights") from None
        if changed:
            ModuleLog(name, ADMIN, self.node).event("resource_set", name=resource, value=value, who=who)
        return changed

    async def _boot(self, ask: Boot) -> BootSetting:
        name = self._module(ask.module)
        paths = ModulePaths(name)
        if self.registry.get(name) is None:
            raise BusError("unknown_module", f"module {name} is not installed on this server; safekit module list")
        if ask.value is not None:
            try:
                paths.var.mkdir(mode=0o770, parents=True, exist_ok=True)
                write_atomic(paths.boot_file, f"{ask.value}\n".encode())
            except OSError as error:
                raise BusError("cannot_write", f"{paths.boot_file}: {error.strerror}; free space or rights") from None
        module = self.registry.get(name)
        return BootSetting("on" if module is not None and module.boot else "off")

    async def _shutdown(self, ask: Shutdown) -> Stopping:
        running = sorted(name for name, runtime in self.runtimes.items() if runtime.running)
        self._beside.start(self._stop_all(ask.who))
        return Stopping(tuple(running))

    async def _reload(self, _: Reload) -> Reloaded:
        await self.reload()
        return Reloaded(bool(self.joined), self.joined.problem)

    async def _respawn(self, ask: Respawn) -> None:
        self._beside.start(self._runtime(self._module(ask.module)).respawn(heart.Control(ask.action, ask.who)))

    async def _ended(self, ask: Ended) -> None:
        await self._runtime(self._module(ask.module)).ended()
